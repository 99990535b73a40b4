"""The tutorial runs from its first cell to its last, and holds no output of an earlier run."""

import json

import pytest
from documents import ROOT
from IPython.core.interactiveshell import InteractiveShell

TUTORIAL = json.loads((ROOT / "examples" / "tutorial.ipynb").read_text())
CELLS = [cell for cell in TUTORIAL["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    assert CELLS
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS)


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    shell, kinds = InteractiveShell.instance(), []
    try:
        for cell in CELLS:
            result = shell.run_cell("".join(cell["source"]))
            result.raise_error()
            kinds.append(set(shell.display_formatter.format(result.result)[0]))
    finally:
        InteractiveShell.clear_instance()
    assert sum("text/html" in kind for kind in kinds) >= 5
    assert any({"image/png", "image/svg+xml"} & kind for kind in kinds)
