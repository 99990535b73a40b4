"""What networks are made of, and what of a call is counted without its arithmetic."""

import pytest
import torch
from torch import nn

from ddpmbench.network.flops import flop_of_shapes, flop_per_call
from ddpmbench.network.outline import Outline


class Recorder(nn.Module):
    """Notes on which device it was called."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.tied = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.tied[1].weight = self.tied[0].weight
        self.seen = []

    def forward(self, x, time):
        self.seen.append(x.device.type)
        h = self.conv(x).mean((2, 3))
        return self.tied[1](self.tied[0](h)) + time[:, None]


class Looking(Recorder):
    """Its way depends on a number, which only a call in earnest has."""

    def forward(self, x, time):
        scale = 1.0 if x.sum().item() == 0 else 2.0
        return super().forward(x, time) * scale


@pytest.mark.parametrize("kind", [Recorder, Looking])
def test_arithmetic_is_counted_without_it_where_that_can_be(kind):
    network = kind()
    inputs = torch.zeros(1, 1, 6, 6), torch.zeros(1)
    expected = flop_per_call(network, *inputs)
    network.seen.clear()
    assert flop_of_shapes(network, *inputs) == expected == 2 * (16 * 9 * 4 + 2 * 16)
    assert network.seen == (["meta"] if kind is Recorder else ["cpu"])
    assert not any(weight.is_meta for weight in network.parameters())


def test_a_network_without_weights_that_needs_numbers_cannot_be_counted():
    with torch.device("meta"):
        network = Looking()
    with pytest.raises(RuntimeError, match="meta"):
        flop_of_shapes(network, torch.zeros(1, 1, 6, 6), torch.zeros(1))


def test_any_network_is_counted_in_layers():
    outline = Outline.of_network(Recorder())
    assert outline.kind == "Recorder"
    assert outline.layers == (("Linear", 2), ("Conv2d", 1))
    assert outline.parameters == 4 * 9 + 4 + 16 + 4 + 4  # the tied matrix once
    assert not outline.levels


def test_weights_alone_tell_how_many_they_are():
    weights = {"first": torch.ones(2, 3), "then": torch.ones(4), "last": torch.ones(5)}
    outline = Outline.of_weights(weights)
    assert outline.parameters == 15
    assert outline.ends == (("first", (2, 3)), ("last", (5,)))
