"""The arithmetic of a call, against what is known of it."""

import dataclasses

import pytest
import torch
from torch import nn
from unet_configs import DDPM_CIFAR10

from ddpmbench.unet.flops import flop_of_unet, flop_per_call
from ddpmbench.unet.unet import Attention, UNet, UNetConfig


def test_the_network_of_ho_et_al_is_as_large_as_is_known():
    network = UNet(DDPM_CIFAR10).eval()
    assert sum(weights.numel() for weights in network.parameters()) == 35_746_307
    found = flop_per_call(network, torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert round(found / 1e9, 3) == 12.444


def test_attention_counts():
    config = UNetConfig(1, 1, 8, (8,), 1, (True,), norm_groups=4)
    found = flop_per_call(Attention(config, 8), torch.zeros(2, 8, 4, 4))
    linear = 2 * 16 * 8 * (24 + 8)
    products = 2 * (2 * 16 * 16 * 8)
    assert found == 2 * (linear + products)


def test_a_product_and_its_sum_are_two():
    assert flop_per_call(nn.Linear(3, 5, bias=False), torch.zeros(7, 3)) == 2 * 7 * 3 * 5


SMALL = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=16,
    channels=(16, 32, 32),
    num_blocks=2,
    attention=(False, True, False),
    norm_groups=8,
)
VARIANTS = [
    {},
    {"num_blocks": 1, "channels": (16,), "attention": (True,), "in_channels": 1, "out_channels": 1},
    {"scale_shift": True, "resampling": "block", "head_channels": 8, "out_channels": 6},
    {"num_classes": 5, "num_heads": 4, "attention": (True, False, True)},
    {"resampling": "pool", "symmetric_padding": True},
    {"resampling": "block", "attention": (False, False, False)},
]


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("changes", VARIANTS)
def test_the_u_net_is_known_without_a_call(changes, size):
    network = UNet(dataclasses.replace(SMALL, **changes)).eval()
    config = network.config
    inputs = [torch.zeros(1, config.in_channels, size, 2 * size), torch.zeros(1)]
    if config.num_classes:
        inputs.append(torch.zeros(1, dtype=torch.int64))
    assert flop_of_unet(network, size, 2 * size) == flop_per_call(network, *inputs)


def test_the_network_of_ho_et_al_is_known_without_weights():
    with torch.device("meta"):
        network = UNet(DDPM_CIFAR10)
    assert flop_of_unet(network, 32, 32) == 12_443_713_536
