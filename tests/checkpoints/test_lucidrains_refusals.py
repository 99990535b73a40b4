"""Files of lucidrains' package that are not read, or only by another version: a line each."""

import re
import sys
import warnings

import pytest
import torch
from lucidrains_files import STEPS, bare, diffusion, edited, noised, package, saved
from peers import refused
from torch import nn

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints import lucidrains
from ddpmbench.checkpoints.lucidrains import read_arguments

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from denoising_diffusion_pytorch import (
        ContinuousTimeGaussianDiffusion,
        ElucidatedDiffusion,
        GaussianDiffusion1D,
        KarrasUnet,
        Unet,
        Unet1D,
        WeightedObjectiveGaussianDiffusion,
        classifier_free_guidance,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file of their Trainer, and the average in it."""
    return saved(tmp_path_factory.mktemp("trainer"), diffusion())


def old(names):
    """Names as versions before 2.0 have them: group norms."""
    return {
        name.replace(".norm.g", ".norm.weight") if ".block" in name else name: value
        for name, value in names.items()
    }


def without(*missing):
    return lambda names: {name: value for name, value in names.items() if name not in missing}


@pytest.mark.parametrize(
    ("change", "version", "words"),
    [
        (without("model.time_mlp.1.weight"), "2.3.4", ["time_mlp.1.weight", "not whole"]),
        (without("model.ups.1.2.mem_kv"), "2.3.4", ["ups.1.2.mem_kv", "not whole"]),
        (without("model.ups.1.2.mem_kv"), "9.0", ["9.0", "another", "pytorch==9.0"]),
        (without("alphas_cumprod"), "2.3.4", ["alphas_cumprod missing"]),
        (old, "1.10.17", ["1.10.17", "another", "pip install", "pytorch==1.10.17"]),
        (old, None, ["before 2.0", "`network=FILE.py"]),
        (old, "import os; #", ["before 2.0", "`network=FILE.py"]),
        (lambda names: names | {"loss_weight": 3}, "2.3.4", ["loss_weight is a int"]),
        (lambda names: names | {"betas": torch.ones(40)}, "2.3.4", ["contradict", "t = 1;"]),
    ],
)
def test_files_that_are_not_whole_or_of_another_version(whole, tmp_path, change, version, words):
    path = edited(whole[0], tmp_path / "model-1.pt", change, version=version)
    with refused(path, *words):
        load_checkpoint(path)


class Unet1(Unet):
    """The network as versions 1.9 to 1.11 have it, but for arguments that they do know."""

    def __init__(self, dim, init_dim, out_dim, dim_mults, channels, self_condition, full_attn):
        super().__init__(dim, init_dim, out_dim, dim_mults, channels, full_attn=full_attn)
        for block in self.modules():
            if isinstance(block, package.Block):
                block.norm = nn.GroupNorm(8, block.norm.g.shape[1])


def test_an_older_file_is_read_by_the_version_that_wrote_it(tmp_path, monkeypatch):
    unet = Unet1(8, None, None, (1, 2), 3, False, (True, False))
    model = package.GaussianDiffusion(unet, image_size=8, timesteps=40).eval()
    monkeypatch.setattr("denoising_diffusion_pytorch.Unet", Unet1)
    monkeypatch.setattr(lucidrains, "installed_version", lambda: "1.10.17")

    def file(version, model=model):
        torch.save({"model": model.state_dict(), "version": version}, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    checkpoint = load_checkpoint(file("1.10.17"))
    with torch.no_grad():
        assert torch.equal(
            checkpoint.model_output(noised(), STEPS), model.model(noised(), STEPS - 1)
        )
    assert "resnet_block_groups 8" in checkpoint.notes[-1]
    # the names are the same, the function need not be
    with refused("1.11.1", "the installed 1.10.17 has another", "pytorch==1.11.1"):
        load_checkpoint(file("1.11.1"))
    with refused("2.3.4", "the installed 1.10.17 has another", "pytorch==2.3.4"):
        load_checkpoint(file("2.3.4", diffusion()))
    with refused("from 2.0 on", "pip install 'denoising-diffusion-pytorch>=2'"):
        load_checkpoint(file(None, diffusion()))


@pytest.mark.parametrize("wrapping", ["", ".fn.fn"])
def test_heads_of_networks_without_memory_keys(tmp_path, wrapping):
    unet = Unet(8, dim_mults=(1, 2, 2), full_attn=(False, True, False))
    names = {
        re.sub(r"(downs\.\d\.2)", rf"\1{wrapping}", name): value
        for name, value in unet.state_dict().items()
        if "mem_kv" not in name
    }
    assert read_arguments(names, tmp_path) == read_arguments(unet.state_dict(), tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        ("final_conv.weight", (5, 8, 1, 1), "gives 5 channels for 3"),
        ("downs.1.3.weight", (12, 8, 3, 3), "downs.1.3.weight is [12, 8, 3, 3]"),
        ("downs.0.2.to_qkv.weight", (90, 8, 1, 1), "to_qkv.weight is [90, 8, 1, 1]"),
        ("time_mlp.1.weight", (3, 8), "time_mlp.1.weight is [3, 8]"),
        ("time_mlp.1.weight", (3, 0), "time_mlp.1.weight is [3, 0]"),
    ],
)
def test_networks_that_the_package_cannot_build(whole, tmp_path, name, shape, word):
    path = tmp_path / "model-1.pt"
    edited(whole[0], path, lambda names: names | {f"model.{name}": torch.zeros(shape)})
    with refused(path, word):
        load_checkpoint(path)


def weighted():
    unet = Unet(8, dim_mults=(1, 2), out_dim=8)
    return WeightedObjectiveGaussianDiffusion(unet, image_size=8, timesteps=40)


def guided():
    unet = classifier_free_guidance.Unet(8, num_classes=4, dim_mults=(1, 2))
    return classifier_free_guidance.GaussianDiffusion(unet, image_size=8, timesteps=40)


def one_dimensional():
    unet = Unet1D(8, dim_mults=(1, 2), channels=3)
    return GaussianDiffusion1D(unet, seq_length=8, timesteps=40)


def continuous():
    unet = Unet(8, dim_mults=(1, 2), learned_sinusoidal_cond=True)
    return ContinuousTimeGaussianDiffusion(unet, image_size=8)


def elucidated():
    unet = Unet(8, dim_mults=(1, 2), learned_sinusoidal_cond=True)
    return ElucidatedDiffusion(unet, image_size=8)


def karras():
    unet = KarrasUnet(image_size=8, dim=8, num_downsamples=1, num_blocks_per_stage=1)
    return package.GaussianDiffusion(unet, image_size=8, timesteps=40)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (weighted, "gives 8 channels for 3"),
        (guided, "depends on classes"),
        (one_dimensional, "init_conv.weight is [8, 3, 7]"),
        (continuous, "`network=FILE.py:NAME`"),
        (elucidated, "`network=FILE.py:NAME`"),
        (karras, "`network=FILE.py:NAME`"),
        (lambda: Unet(8, dim_mults=(1, 2)), "`network=FILE.py:NAME`"),
    ],
)
def test_other_models_of_the_package(tmp_path, make, word):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        state = make().state_dict()
    torch.save(state, tmp_path / "model-1.pt")
    with refused(tmp_path / "model-1.pt", word):
        load_checkpoint(tmp_path / "model-1.pt")


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    path = bare(tmp_path, diffusion())
    monkeypatch.setitem(sys.modules, "denoising_diffusion_pytorch", None)
    with refused(path, "pip install 'ddpmbench[lucidrains]'"):
        load_checkpoint(path)


def test_a_variance_learned_in_vp_is_that_of_no_other_process(tmp_path):
    path = bare(tmp_path, diffusion({"learned_variance": True}))
    for process in ("ve", "sub-vp", "flow", "ve:0.01:50:20", "flow:20"):
        with refused(path, f"`process={process}`", "learned variance"):
            load_checkpoint(path, CheckpointSettings(process=process))
    assert load_checkpoint(path, CheckpointSettings(process="vp")).variance.is_learned


def test_a_fixed_variance_follows_the_process(whole):
    checkpoint = load_checkpoint(whole[0], CheckpointSettings(process="ve"))
    assert checkpoint.schedule.process == "ve"
