"""What a look at a checkpoint takes: each row starts a Python of its own.

`inspect_seconds` is what it takes beyond importing torch. All but lucidrains' file hold the network
of google/ddpm-cifar10-32, or one as large.
"""

import json

import pytest
import torch
from subjects import cifar10_checkpoint
from test_cold_start import started

import ddpmbench as db
from ddpmbench.checkpoints.native import write_native

LOOK = """
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

    # Files of that repository are known by their sizes.
    name = folder / "ema_cifar10.ckpt"
    torch.save(pesser_weights(cifar10_checkpoint(WIDTH).network), name)
    return [name]


def openai(folder, width, *flags):
    from peers import openai_weights

    name = folder / "ema_0.9999_500000.pt"
    torch.save(openai_weights(width, (1, 2, 2, 2), 3, (False, True, True, False)), name)
    return [name, *flags]


def openai_with_flags(folder, width):
    # A preset, which has its width.
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


def look(benchmark, bench, what, arguments):
    written = started(benchmark, bench, what, ["-c", LOOK, *map(str, arguments)], rounds=5)
    *text, last = written.splitlines()
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
    assert look(benchmark, bench, "inspect, shipped", [])["settled"]


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_look(benchmark, bench, tmp_path, family):
    arguments = family(tmp_path, 32 if bench.smoke else WIDTH)
    summary = look(benchmark, bench, f"inspect, {family.__name__}", arguments)
    assert summary["settled"] == (family is not openai)
    assert summary["network"]["parameters"] > (1e6 if bench.smoke else 35e6)
