"""The arithmetic of a call, against what is known of it."""

import torch
from published import DDPM_CIFAR10
from torch import nn

from ddpmbench.network.flops import flop_per_call
from ddpmbench.network.unet import Attention, UNet
from ddpmbench.network.unet_config import UNetConfig


def test_the_network_of_ho_et_al_is_as_large_as_is_known():
    network = UNet(DDPM_CIFAR10).eval()
    assert sum(weights.numel() for weights in network.parameters()) == 35_746_307
    found = flop_per_call(network, torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert round(found / 1e9, 3) == 12.444


def test_attention_counts():
    config = UNetConfig(
        in_channels=1,
        out_channels=1,
        model_channels=8,
        channels=(8,),
        num_blocks=1,
        attention=(True,),
        norm_groups=4,
    )
    found = flop_per_call(Attention(config, 8), torch.zeros(2, 8, 4, 4))
    linear = 2 * 16 * 8 * (24 + 8)
    products = 2 * (2 * 16 * 16 * 8)
    assert found == 2 * (linear + products)


def test_a_product_and_its_sum_are_two():
    assert flop_per_call(nn.Linear(3, 5, bias=False), torch.zeros(7, 3)) == 2 * 7 * 3 * 5
