"""The U-Net with a table of its time gives what the U-Net gives."""

import copy

import pytest
import torch
from unet_configs import DDPM_CIFAR10

from ddpmbench.unet.timed_unet import Precision, TimedUNet
from ddpmbench.unet.unet import UNet, UNetConfig

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    model_channels=32,
    channels=(32, 64),
    num_blocks=1,
    attention=(False, True),
    norm_groups=8,
)
VARIANTS = [
    {},
    {"scale_shift": True, "resampling": "block", "head_channels": 16, "out_channels": 6},
    {"num_classes": 5, "scale_shift": True},
    {"resampling": "pool", "cosine_first": True},
]


def unet(**of):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(UNetConfig(**(CONFIG | of))).eval()


def inputs(network, batch=6, size=8, num_timesteps=1000):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, size, size, generator=generator)
    t = torch.randint(1, num_timesteps + 1, (batch,), generator=generator)
    labels = torch.arange(batch) % 5 if network.config.num_classes else None
    return x, t, labels


def relative_error(found, expected):
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.mark.parametrize("of", VARIANTS, ids=lambda of: "-".join(of) or "ho")
@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_in_float32_it_is_the_same_function(of, channels_last):
    network = unet(**of)
    x, t, labels = inputs(network)
    times = torch.arange(1000.0) * 1.7
    timed = TimedUNet(network, times, channels_last=channels_last)
    torch.testing.assert_close(
        timed(x, t, labels), network(x, times[t - 1], labels), rtol=1e-5, atol=2e-6
    )
    # Each step has a row of its own, the first and the last too.
    ends = torch.tensor([1, 1000])
    x, labels = x[:2], None if labels is None else labels[:2]
    torch.testing.assert_close(
        timed(x, ends, labels), network(x, times[[0, 999]], labels), rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("of", VARIANTS, ids=lambda of: "-".join(of) or "ho")
@torch.no_grad()
def test_in_16_bits_it_errs_by_their_rounding(of):
    network = unet(**of)
    x, t, labels = inputs(network)
    times = torch.arange(1000.0)
    expected = network(x, times[t - 1], labels)
    found = TimedUNet(network, times, precision=Precision.BF16)(x, t, labels)
    assert found.dtype is torch.float32
    # bfloat16 rounds by up to 2^-9; a network without any such part would err by nothing.
    assert 1e-4 < relative_error(found, expected) < 2e-2


@torch.no_grad()
def test_the_ends_of_the_network_are_float32_in_16_bits():
    network = unet()
    x, t, _ = inputs(network)
    times, seen = torch.arange(1000.0), {}
    timed = TimedUNet(network, times, precision=Precision.BF16)
    for name in ("conv_in", "norm_out", "conv_out", "middle.block_1.conv_1", "up.0.blocks.0"):
        timed.unet.get_submodule(name).register_forward_hook(
            lambda module, given, out, name=name: seen.update({name: (given[0].dtype, out.dtype)})
        )
    timed(x, t)
    wide, narrow = (torch.float32,) * 2, (torch.bfloat16,) * 2
    assert seen.pop("middle.block_1.conv_1") == narrow
    assert seen.pop("up.0.blocks.0") == narrow
    assert set(seen.values()) == {wide}
    # An end that is rounded costs accuracy: that is why it is not.
    expected = network(x, times[t - 1])
    rounded = copy.deepcopy(network)
    for end in (rounded.conv_in, rounded.conv_out):
        end.weight.copy_(end.weight.bfloat16())
    worse = TimedUNet(rounded, times, precision=Precision.BF16)(x.bfloat16().float(), t)
    assert relative_error(worse.bfloat16().float(), expected) > relative_error(
        timed(x, t), expected
    )


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@torch.no_grad()
def test_the_network_itself_is_left_as_it_was(precision):
    network = unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TimedUNet(network, torch.arange(10.0), precision=precision, channels_last=True)
    for name, value in network.state_dict().items():
        assert value.dtype is torch.float32
        assert value.is_contiguous(), name
        assert torch.equal(value, before[name])


def test_the_table_is_as_large_as_it_says():
    """20 MB for the network of Ho et al.'s CIFAR-10."""
    table = TimedUNet(UNet(DDPM_CIFAR10), torch.arange(1000.0)).table
    assert 19.5e6 < table.numel() * 4 < 20.5e6
