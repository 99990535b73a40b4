"""What is paid before the first number: each row starts a Python of its own."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from ddpmbench.execution.devices import device_name

ROOT = Path(__file__).parents[1]
FIRST_CALL = """
import json, sys, time
begin, seconds = time.perf_counter(), {}
def lap(name):
    seconds[name] = time.perf_counter() - begin - sum(seconds.values())
import torch
lap("import_torch")
import ddpmbench as db
lap("import_ddpmbench")
checkpoint = db.load_checkpoint(*sys.argv[3:])
lap("load")
from ddpmbench.execution.engine import Engine, EngineChoice
compiled = sys.argv[2] == "compiled"
choice = EngineChoice(channels_last=compiled, compiled=compiled)
device = torch.device(sys.argv[1])
engine = Engine(checkpoint, device=device, choice=choice)
lap("engine")
size = checkpoint.image_size or 32
x_t = torch.zeros(1, checkpoint.channels or 3, size, size, device=device)
t = torch.ones(1, dtype=torch.int64, device=device)
labels = torch.zeros_like(t) if checkpoint.num_classes else None
for name in ("first_call", "second_call"):
    with engine.running(), torch.inference_mode():
        assert torch.isfinite(engine.model_output(x_t, t, labels)).all()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    lap(name)
print(json.dumps(seconds))
"""


def started(benchmark, bench, what, arguments, *, rounds):
    """Time whole processes, each with an empty cache of the compiler; gives what the last wrote."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def start():
        if bench.smoke:
            return printed_here(*map(str, arguments))
        return subprocess.run(
            [sys.executable, *arguments], env=variables, capture_output=True, text=True, check=True
        ).stdout

    rounds = 1 if bench.smoke else rounds
    written = benchmark.pedantic(start, rounds=rounds, warmup_rounds=0 if rounds == 1 else 1)
    benchmark.group = "cold start"
    benchmark.extra_info.update(what=what, device=device_name(bench.device))
    return written


def printed_here(option, what, *arguments):
    """What Python with these arguments prints, run in this process."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        mock.patch.object(sys, "argv", [what, *arguments]),
        contextlib.suppress(SystemExit),
    ):
        if option == "-m":
            runpy.run_module(what, run_name="__main__")
        else:
            exec(what, {"__name__": "__main__"})
    return printed.getvalue()


def test_help(benchmark, bench):
    written = started(benchmark, bench, "--help", ["-m", "ddpmbench", "--help"], rounds=5)
    assert "nll" in written


@pytest.mark.full
def test_import(benchmark, bench):
    script = "import ddpmbench, sys; print(sorted(sys.modules))"
    written = started(benchmark, bench, "import", ["-c", script], rounds=3)
    assert "'ddpmbench'" in written


@pytest.mark.full
@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_first_call(benchmark, bench, request, tmp_path, monkeypatch, how):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    ckpt = request.config.getoption("--ckpt")
    arguments = ["-c", FIRST_CALL, str(bench.device), how, *([ckpt] if ckpt else [])]
    # What a second process would find compiled is no cold start.
    rounds = 1 if how == "compiled" else 3
    written = started(benchmark, bench, f"first call, {how}", arguments, rounds=rounds)
    seconds = json.loads(written.splitlines()[-1])
    assert list(seconds)[-1] == "second_call"
    benchmark.extra_info.update(
        model="shipped" if ckpt is None else ckpt,
        precision="fp32",
        compiled=how == "compiled",
        **{f"{name}_seconds": value for name, value in seconds.items()},
    )
