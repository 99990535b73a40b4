"""The cost before the first number: each row starts its own Python.

`inspect_seconds` is the time of `inspect` beyond importing torch. All files but lucidrains' hold
the network of google/ddpm-cifar10-32, or one as large.
"""

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
import torch
from subjects import cifar10_checkpoint

import ddpmbench as db
from ddpmbench.checkpoints.native import write_native
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


def started(benchmark, bench, name, arguments, *, rounds):
    """Time whole processes, each with an empty compiler cache; return the last one's output."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def start():
        if bench.smoke:
            return printed_here(*map(str, arguments))
        return subprocess.run(
            [sys.executable, *arguments], env=variables, capture_output=True, text=True, check=True
        ).stdout

    rounds = 1 if bench.smoke else rounds
    output = benchmark.pedantic(start, rounds=rounds, warmup_rounds=0 if rounds == 1 else 1)
    benchmark.group = "cold start"
    benchmark.extra_info.update(what=name, device=device_name(bench.device))
    return output


def printed_here(option, target, *arguments):
    """The output of Python with these arguments, run in this process."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        mock.patch.object(sys, "argv", [target, *arguments]),
        contextlib.suppress(SystemExit),
    ):
        if option == "-m":
            runpy.run_module(target, run_name="__main__")
        else:
            exec(target, {"__name__": "__main__"})
    return printed.getvalue()


def test_help(benchmark, bench):
    output = started(benchmark, bench, "--help", ["-m", "ddpmbench", "--help"], rounds=5)
    assert "nll" in output


@pytest.mark.full
def test_import(benchmark, bench):
    script = "import ddpmbench, sys; print(sorted(sys.modules))"
    output = started(benchmark, bench, "import", ["-c", script], rounds=3)
    assert "'ddpmbench'" in output


@pytest.mark.full
@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_first_call(benchmark, bench, request, tmp_path, monkeypatch, how):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    ckpt = request.config.getoption("--ckpt")
    arguments = ["-c", FIRST_CALL, str(bench.device), how, *([ckpt] if ckpt else [])]
    # With a second process's warm cache it would not be a cold start.
    rounds = 1 if how == "compiled" else 3
    output = started(benchmark, bench, f"first call, {how}", arguments, rounds=rounds)
    seconds = json.loads(output.splitlines()[-1])
    assert list(seconds)[-1] == "second_call"
    benchmark.extra_info.update(
        model="shipped" if ckpt is None else ckpt,
        precision="fp32",
        compiled=how == "compiled",
        **{f"{name}_seconds": value for name, value in seconds.items()},
    )


# ---- inspect

INSPECT = """
import sys, time
begin = time.perf_counter()
import torch
torch_seconds = time.perf_counter() - begin
from ddpmbench.cli.main import run
status = run(["inspect", *sys.argv[1:], "--format", "json"])
seconds = time.perf_counter() - begin - torch_seconds
print(f"{status} {torch_seconds} {seconds}", file=sys.stdout)
"""
WIDTH = 128
"""Of google/ddpm-cifar10-32."""
OWN = """
from ddpmbench.unet.unet import UNet
from ddpmbench.unet.unet import UNetConfig

def build():
    return UNet(UNetConfig(3, 3, {0}, ({0}, {1}, {1}, {1}), 2, (False, True, False, False)))
"""
HOW = {
    "--schedule": "linear:1000",
    "--prediction": "eps",
    "--variance": "fixed_large",
    "--time-input": "index",
}


def native(folder, width):
    write_native(folder / "model.safetensors", cifar10_checkpoint(width))
    return [folder / "model.safetensors"]


def diffusers(folder, width):
    db.convert_checkpoint(cifar10_checkpoint(width), folder / "pipeline")
    return [folder / "pipeline"]


def pesser(folder, width):
    from peers import pesser_weights

    # Files of that repository are identified by their sizes.
    name = folder / "ema_cifar10.ckpt"
    torch.save(pesser_weights(cifar10_checkpoint(WIDTH).network), name)
    return [name]


def openai(folder, width, *flags):
    from peers import openai_weights

    name = folder / "ema_0.9999_500000.pt"
    torch.save(openai_weights(width, (1, 2, 2, 2), 3, (False, True, True, False)), name)
    return [name, *flags]


def openai_with_flags(folder, width):
    # A preset with its width.
    return openai(folder, WIDTH, "--model-flags", "cifar10_uncond_50M_500K")


def lucidrains(folder, width):
    from lucidrains_files import bare, diffusion

    unet = {"dim": width // 2, "dim_mults": (1, 2, 4, 8), "attn_heads": 4, "attn_dim_head": 32}
    return [bare(folder, diffusion(unet, image_size=32, timesteps=1000))]


def own(folder, width):
    (folder / "own.py").write_text(OWN.format(width, 2 * width))
    torch.save(cifar10_checkpoint(width).network.state_dict(), folder / "own.pt")
    options = [word for option in HOW.items() for word in option]
    return [folder / "own.pt", "--network", f"{folder / 'own.py'}:build", *options]


FAMILIES = (native, diffusers, pesser, openai_with_flags, openai, lucidrains, own)


def inspected(benchmark, bench, name, arguments):
    output = started(benchmark, bench, name, ["-c", INSPECT, *map(str, arguments)], rounds=5)
    *text, last = output.splitlines()
    status, torch_seconds, seconds = last.split()
    summary = json.loads("\n".join(text))
    assert status == "0"
    benchmark.extra_info.update(
        model=summary["checkpoint"]["family"],
        settled=summary["settled"],
        parameters=summary["network"]["parameters"],
        import_torch_seconds=float(torch_seconds),
        inspect_seconds=float(seconds),
    )
    return summary


def test_look_at_the_shipped_checkpoint(benchmark, bench):
    assert inspected(benchmark, bench, "inspect, shipped", [])["settled"]


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_look(benchmark, bench, tmp_path, family):
    arguments = family(tmp_path, 32 if bench.smoke else WIDTH)
    summary = inspected(benchmark, bench, f"inspect, {family.__name__}", arguments)
    assert summary["settled"] == (family is not openai)
    assert summary["network"]["parameters"] > (1e6 if bench.smoke else 35e6)
