"""Studies, one a file, each run by one command: ``python -m metalearn study NAME``."""
