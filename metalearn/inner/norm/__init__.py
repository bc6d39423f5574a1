"""Batch normalisation of one task: whose statistics, and where they come from."""
