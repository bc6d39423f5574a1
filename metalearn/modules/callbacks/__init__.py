"""Callbacks that measure, save, stop and show a run."""
