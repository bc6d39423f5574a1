"""Solvers of the inner problem and of the linear system, proximal maps, and step sizes."""
