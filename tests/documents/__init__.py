"""Tests of the documents: the site, its code, the gallery and the notebooks. Run by ``pytest -m documents``."""
