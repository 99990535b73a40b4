"""The tutorial runs from its first cell to its last, and holds no output of an earlier run.

It runs on fewer images, to a wider interval.
"""

import json

import pytest
from documents import ROOT
from IPython.core.interactiveshell import InteractiveShell

TEXT = (ROOT / "examples" / "tutorial.ipynb").read_text()
TUTORIAL = json.loads(TEXT)
FEWER = {"num_images=64": "num_images=8", "=0.05": "=1.0", "num_generated=24": "num_generated=8"}
CELLS = [cell for cell in TUTORIAL["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    assert CELLS
    assert all(TEXT.count(written) == 1 for written in FEWER)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS)


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    shell, kinds = InteractiveShell.instance(), []
    try:
        for cell in CELLS:
            source = "".join(cell["source"])
            for written, fewer in FEWER.items():
                source = source.replace(written, fewer)
            result = shell.run_cell(source)
            result.raise_error()
            kinds.append(set(shell.display_formatter.format(result.result)[0]))
    finally:
        InteractiveShell.clear_instance()
    assert sum("text/html" in kind for kind in kinds) >= 5
    assert any({"image/png", "image/svg+xml"} & kind for kind in kinds)
