"""Files as yang-song/score_sde_pytorch saves them, and what its own networks gave (tests/data)."""

import functools
from pathlib import Path

import numpy as np
import torch

FLAGS = "--config.training.sde={} --config.training.continuous={} --config.model.name={}"
UNSCALED = " --config.model.scale_by_sigma=False"
PLUS = " --config.model.skip_rescale=True --config.model.fir=False"
DDPM_BLOCKS = " --config.model.resblock_type=ddpm"
CASES = {
    "vp_ddpm": FLAGS.format("vpsde", False, "ddpm"),
    "vp_ddpm_pool_continuous": FLAGS.format("vpsde", True, "ddpm"),
    "ve_ddpm": FLAGS.format("vesde", False, "ddpm"),
    "ve_ddpm_unscaled": FLAGS.format("vesde", False, "ddpm") + UNSCALED,
    "subvp_ddpmpp": FLAGS.format("subvpsde", True, "ncsnpp") + PLUS,
    "vp_ncsnpp_blocks": FLAGS.format("vpsde", False, "ncsnpp") + PLUS + DDPM_BLOCKS,
    "vp_one_level": FLAGS.format("vpsde", False, "ddpm"),
}
"""The recorded cases and the flags that describe them."""
_FILE = Path(__file__).parent / "data" / "score_sde.npz"


@functools.cache
def recorded(case):
    """The recorded arrays of a case."""
    with np.load(_FILE) as arrays:
        return {
            name.removeprefix(f"{case}/"): arrays[name]
            for name in arrays.files
            if name.startswith(f"{case}/")
        }


@functools.cache
def parameters(case):
    """The weights that the recorded network had, in the order of its parameters."""
    record = recorded(case)
    random = np.random.RandomState(int(record["seed"]))
    weights = {}
    for line in record["parameters"]:
        name, sides = str(line).split(" ")
        shape = tuple(map(int, sides.split(",")))
        values = random.standard_normal(shape)
        if len(shape) > 1:
            values /= np.sqrt(values.size / shape[name.endswith(".W")])
        else:
            is_scale = "GroupNorm" in name and name.endswith("weight")
            values = 0.2 * values + (1.0 if is_scale else 0.0)
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights


def training_state(case, **changes):
    """What the project's `save_checkpoint` writes; the last weights differ from the averaged."""
    averaged = parameters(case)
    generator = torch.Generator().manual_seed(0)
    last = {
        name: weight + 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
        for name, weight in averaged.items()
    }
    largest, smallest = recorded(case)["sigmas"]
    sigmas = torch.from_numpy(np.exp(np.linspace(np.log(largest), np.log(smallest), 1000)))
    moments = {n: {"exp_avg": torch.zeros(w.shape)} for n, w in enumerate(averaged.values())}
    return {
        "optimizer": {"state": moments, "param_groups": [{"lr": 2e-4}]},
        "model": {"module.sigmas": sigmas, **last},
        "ema": {
            "decay": 0.9999,
            "num_updates": 1000,
            "shadow_params": list(averaged.values()),
        },
        "step": 1000,
        **changes,
    }
