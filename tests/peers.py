"""The families' own files, made by their own code where it can be installed."""

import contextlib
import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch
from unet_configs import SMALL_CONFIG

from ddpmbench import Checkpoint
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import UNet

with warnings.catch_warnings():
    # what diffusers' own imports warn of is not ours to mend
    warnings.simplefilter("ignore")
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the recorded files of shared/data are not beside the repository"
)

# google/ddpm-cifar10-32
CIFAR10_UNET = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALL_UNET = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def random_network(make, seed=0):
    """A network with every weight random, those of the normalizations too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make().eval().requires_grad_(False)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def diffusers_unet(settings, seed=0):
    """Their network with random weights."""
    return random_network(lambda: UNet2DModel(**settings), seed)


def random_model(config=SMALL_CONFIG, **changes):
    """A model of our U-Net with random weights, for images of 8x8."""
    learned = config.out_channels != config.in_channels
    checkpoint = Checkpoint(
        network=random_network(lambda: UNet(config)),
        schedule=NoiseSchedule.cosine(40),
        prediction=Prediction.V,
        variance=Variance.LEARNED_RANGE if learned else Variance.FIXED_SMALL,
        channels=config.in_channels,
        image_size=8,
        size_multiple=config.size_multiple,
        num_classes=config.num_classes,
        family="native",
        source="made",
        sha256="0" * 64,
    )
    return dataclasses.replace(checkpoint, **changes)


def save_flat(folder, network, scheduler=None):
    """config.json, scheduler_config.json and the weights in one folder."""
    network.save_pretrained(folder)
    (scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder


def save_pipeline(folder, network, scheduler=None):
    """model_index.json, unet/ and scheduler/."""
    DDPMPipeline(network, scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder


def edit_json(path, *, remove=(), **fields):
    values = json.loads(path.read_text())
    values = {name: value for name, value in values.items() if name not in remove}
    path.write_text(json.dumps({**values, **fields}))


OPENAI_FLAGS = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 "
    "--attention_resolutions 4 --learn_sigma True"
)
"""Of the weights that follow."""


def openai_weights(
    num_channels=32,
    multiples=(1, 2),
    num_res_blocks=1,
    attended=(False, True),
    *,
    images=3,
    learn_sigma=True,
    classes=0,
    scale_shift=True,
    updown=False,
    device="cpu",
):
    """Random weights under the names improved-diffusion and guided-diffusion give them."""
    generator = torch.Generator().manual_seed(0)
    weights, time = {}, 4 * num_channels

    def put(name, *shape):
        for leaf, size in (("weight", shape), ("bias", shape[:1])):
            if device == "meta":
                weights[f"{name}.{leaf}"] = torch.empty(size, device="meta")
            else:
                weights[f"{name}.{leaf}"] = 0.1 * torch.randn(size, generator=generator)

    def residual(name, before, after):
        put(f"{name}.in_layers.0", before)
        put(f"{name}.in_layers.2", after, before, 3, 3)
        put(f"{name}.emb_layers.1", after * (2 if scale_shift else 1), time)
        put(f"{name}.out_layers.0", after)
        put(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            put(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name, width):
        put(f"{name}.norm", width)
        put(f"{name}.qkv", 3 * width, width, 1)
        put(f"{name}.proj_out", width, width, 1)

    put("time_embed.0", time, num_channels)
    put("time_embed.2", time, time)
    if classes:
        put("label_emb", classes, time)
        del weights["label_emb.bias"]
    widths = [num_channels * multiple for multiple in multiples]
    put("input_blocks.0.0", widths[0], images, 3, 3)
    width, skips, number = widths[0], [widths[0]], 1
    for level, after in enumerate(widths):
        for _ in range(num_res_blocks):
            residual(f"input_blocks.{number}.0", width, after)
            if attended[level]:
                attention(f"input_blocks.{number}.1", after)
            width, number = after, number + 1
            skips.append(width)
        if level < len(widths) - 1:
            if updown:
                residual(f"input_blocks.{number}.0", width, width)
            else:
                put(f"input_blocks.{number}.0.op", width, width, 3, 3)
            number += 1
            skips.append(width)
    residual("middle_block.0", width, width)
    attention("middle_block.1", width)
    residual("middle_block.2", width, width)
    number = 0
    for level in reversed(range(len(widths))):
        for block in range(num_res_blocks + 1):
            residual(f"output_blocks.{number}.0", width + skips.pop(), widths[level])
            width, position = widths[level], 1
            if attended[level]:
                attention(f"output_blocks.{number}.1", width)
                position = 2
            if level and block == num_res_blocks:
                if updown:
                    residual(f"output_blocks.{number}.{position}", width, width)
                else:
                    put(f"output_blocks.{number}.{position}.conv", width, width, 3, 3)
            number += 1
    put("out.0", width)
    put("out.2", images * (2 if learn_sigma else 1), width, 3, 3)
    return weights


def pesser_weights(network):
    """The weights of our U-Net under the names and in the shapes of pesser/pytorch_diffusion."""
    levels, weights = len(network.config.channels), {}

    def put(name, module, *, pixels=False):
        for leaf, tensor in module.state_dict().items():
            convolved = pixels and leaf == "weight"
            weights[f"{name}.{leaf}"] = tensor[:, :, None, None] if convolved else tensor

    def residual(name, block):
        for theirs, ours in {"temb_proj": "time", "nin_shortcut": "shortcut"}.items():
            put(f"{name}.{theirs}", getattr(block, ours))
        for layer in ("norm", "conv"):
            for number in "12":
                put(f"{name}.{layer}{number}", getattr(block, f"{layer}_{number}"))

    def attention(name, layer):
        put(f"{name}.norm", layer.norm)
        put(f"{name}.proj_out", layer.out, pixels=True)
        rows = layer.qkv.state_dict()
        for part, weight, bias in zip(
            "qkv", rows["weight"].chunk(3), rows["bias"].chunk(3), strict=True
        ):
            weights[f"{name}.{part}.weight"] = weight[:, :, None, None].clone()
            weights[f"{name}.{part}.bias"] = bias.clone()

    put("temb.dense.0", network.time_1)
    put("temb.dense.1", network.time_2)
    for name in ("conv_in", "norm_out", "conv_out"):
        put(name, getattr(network, name))
    for way in ("down", "up"):
        for position, level in enumerate(getattr(network, way)):
            name = f"{way}.{position if way == 'down' else levels - 1 - position}"
            for number, block in enumerate(level.blocks):
                residual(f"{name}.block.{number}", block)
            for number, layer in enumerate(level.attentions):
                attention(f"{name}.attn.{number}", layer)
            if getattr(level.resample, "conv", None) is not None:
                put(f"{name}.{way}sample.conv", level.resample.conv)
    residual("mid.block_1", network.middle.block_1)
    attention("mid.attn_1", network.middle.attention)
    residual("mid.block_2", network.middle.block_2)
    return weights


def same_weights(one, other):
    """Whether two checkpoints hold the same network, to the last bit."""
    weights, others = one.network.state_dict(), other.network.state_dict()
    assert one.network.config == other.network.config
    return all(torch.equal(weight, others[name]) for name, weight in weights.items())


@contextlib.contextmanager
def refused(*words):
    """The block ends in one line for the user, which holds every one of the words."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
