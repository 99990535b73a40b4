"""The tutorial runs from its first cell to its last, and holds no output of an earlier run."""

import nbformat
import pytest
from documents import ROOT
from nbclient import NotebookClient

TUTORIAL = ROOT / "examples" / "tutorial.ipynb"


def test_it_is_kept_without_outputs():
    cells = [c for c in nbformat.read(TUTORIAL, 4).cells if c.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(TUTORIAL, 4)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, resources=folder).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    tables = [output for output in shown if "text/html" in output.get("data", {})]
    figures = [
        output for output in shown if {"image/png", "image/svg+xml"} & set(output.get("data", {}))
    ]
    assert len(tables) >= 5
    assert figures
    assert [output for output in shown if output.output_type == "error"] == []
