"""Notebooks of the galleries: jupytext makes them of the scripts, beside the pages that link to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode
from sphinx.application import Sphinx

__all__ = ["make_notebook", "setup", "write_notebooks"]

ARCHIVE = re.compile(r"\n    \.\. container:: sphx-glr-download sphx-glr-download-zip\n\n.*\n")


def make_notebook(script: Path) -> NotebookNode:
    """The notebook of a script in the percent format."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def write_notebooks(app: Sphinx) -> None:
    """Write a notebook for every page of the galleries, in the place of the one that sphinx-gallery made."""
    for gallery in app.config.sphinx_gallery_conf["gallery_dirs"]:
        for script in sorted((Path(app.srcdir) / gallery).glob("*.py")):
            jupytext.write(make_notebook(script), script.with_suffix(".ipynb"), fmt="ipynb")


def leave_archive_out(app: Sphinx, page: str, source: list[str]) -> None:
    """Take the link to an archive of script and notebook from a page, since both have links of their own."""
    if page.split("/")[0] in app.config.sphinx_gallery_conf["gallery_dirs"]:
        source[0] = ARCHIVE.sub("\n", source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Do both where Sphinx has made the gallery."""
    app.connect("builder-inited", write_notebooks, priority=900)  # sphinx-gallery runs at 500
    app.connect("source-read", leave_archive_out)
    return {"parallel_read_safe": True}
