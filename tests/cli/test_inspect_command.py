"""`ddpmbench inspect` as it is typed."""

import json
import subprocess
import sys

import peers
import torch
from sealing import read_record


def test_a_checkpoint_that_lacks_nothing(invoke, small_checkpoint):
    status, printed, message = invoke("inspect", small_checkpoint)
    assert (status, message) == (0, "")
    assert printed.startswith("small.safetensors: a diffusion model of 8x8 gray images, T = 40\n")
    assert f"evaluate    ddpmbench nll --ckpt {small_checkpoint}" in printed


def test_without_a_name_it_is_the_checkpoint_of_the_package(completed):
    printed, _ = completed("inspect")
    assert printed.startswith("default: a diffusion model of 28x28 gray images, T = 1,000\n")
    assert printed.splitlines()[-1] == "evaluate    ddpmbench nll"


def test_missing_settings_are_no_mistake(invoke, tmp_path):
    torch.save(peers.openai_weights(), tmp_path / "model500000.pt")
    status, printed, message = invoke("inspect", tmp_path / "model500000.pt")
    assert (status, message) == (0, "")
    printed = " ".join(printed.split())
    assert "To evaluate it, say how it was trained: --model-flags" in printed
    assert "time input missing" in printed
    assert "`" not in printed


def test_json_is_what_is_written(completed, small_checkpoint, tmp_path):
    out = tmp_path / "look"
    printed, message = completed("inspect", small_checkpoint, "--format", "json", "--out", out)
    assert message == f"Folder: {out}\n"
    assert json.loads(printed) == read_record(out / "inspect.json")


def test_a_file_that_is_no_checkpoint(refused, tmp_path):
    (tmp_path / "notes.pt").write_bytes(b"no checkpoint at all")
    assert "notes.pt" in refused("inspect", tmp_path / "notes.pt")
    torch.save({"first.weight": torch.ones(3)}, tmp_path / "other.pt")
    assert "other.pt" in refused("inspect", tmp_path / "other.pt")


def test_inspect_imports_neither_tables_nor_figures_nor_the_compiler():
    script = (
        "import sys; from ddpmbench.cli.main import run; run(['inspect']); "
        "print(*sorted({'pandas', 'matplotlib', 'scipy', 'PIL', 'torch._dynamo'} & "
        "set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == ""
    assert "T = 1,000" in done.stdout
