"""Experiments as objects: runs and their folders, comparisons, seeds, sweeps, and processes that run side by side."""
