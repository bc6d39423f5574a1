"""The notebook of every script of the galleries runs in a fresh kernel, and draws its picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.gallery import SCRIPTS, names, shorten

nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbclient, of the extra 'docs'")
nbformat = pytest.importorskip("nbformat", reason="notebooks are run by nbclient, of the extra 'docs'")
notebooks = pytest.importorskip("notebooks", reason="notebooks are made by jupytext, of the extra 'docs'")

pytestmark = [
    pytest.mark.documents,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client"),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=names(SCRIPTS))
def test_it_runs_in_a_fresh_kernel(script: Path, tmp_path: Path) -> None:
    (tmp_path / script.name).write_text(shorten(script.read_text()))
    notebook = notebooks.make_notebook(tmp_path / script.name)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.validate(notebook)
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1
    assert (tmp_path / f"{script.stem}.png").is_file()
