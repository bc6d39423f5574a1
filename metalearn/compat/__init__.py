"""Adapters to other meta-learning libraries, each of which is imported only when it is asked for."""
