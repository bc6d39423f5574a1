"""The examples: what their functions compute. The scripts themselves are run by ``tests/documents``."""
