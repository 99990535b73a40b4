"""What networks are made of, and what of a call is counted without its arithmetic."""

import pytest
import torch
from torch import nn

from ddpmbench.unet.flops import call_of_shapes, flop_per_call
from ddpmbench.unet.outline import Outline

SEEN = []
"""On which devices a Recorder was called."""


class Recorder(nn.Module):
    """Notes on which device it is called, and keeps what it computed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.tied = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.tied[1].weight = self.tied[0].weight
        self.register_buffer("calls", torch.zeros(1))
        self.table = None

    def forward(self, x, time):
        SEEN.append(x.device.type)
        self.calls += 1
        if self.table is None:
            self.table = torch.arange(4.0, device=x.device)
        h = self.conv(x).mean((2, 3)) + self.table
        return self.tied[1](self.tied[0](h)) + time[:, None]


class Looking(Recorder):
    """Its way depends on a number, which only a call in earnest has."""

    def forward(self, x, time):
        scale = 1.0 if x.sum().item() == 0 else 2.0
        return super().forward(x, time) * scale


@pytest.mark.parametrize("kind", [Recorder, Looking])
def test_arithmetic_is_counted_without_it_where_that_can_be(kind):
    inputs = torch.zeros(1, 1, 6, 6), torch.zeros(1)
    expected = flop_per_call(kind(), *inputs)
    SEEN.clear()
    found = call_of_shapes(kind(), *inputs)
    assert found.flop == expected == 2 * (16 * 9 * 4 + 2 * 16)
    assert found.shape == (1, 4)
    assert [SEEN.pop()] == (["meta"] if kind is Recorder else ["cpu"])
    assert not SEEN


@pytest.mark.parametrize("kind", [Recorder, Looking])
def test_nothing_of_a_counted_call_stays_in_the_network(kind):
    network, fresh = kind(), kind()
    fresh.load_state_dict(network.state_dict())
    weights = list(network.parameters())
    inputs = torch.ones(1, 1, 6, 6), torch.ones(1)
    call_of_shapes(network, *inputs)
    assert network.table is None
    assert network.calls.item() == 0
    assert all(now is before for now, before in zip(network.parameters(), weights, strict=True))
    assert torch.equal(network(*inputs), fresh(*inputs))


@pytest.mark.parametrize("kind", [Recorder, Looking])
def test_weights_are_not_copied_for_it(monkeypatch, kind):
    copied = []
    deep = nn.Parameter.__deepcopy__
    monkeypatch.setattr(
        nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(self) or deep(self, memo)
    )
    call_of_shapes(kind(), torch.zeros(1, 1, 6, 6), torch.zeros(1))
    assert not copied


def test_a_network_without_weights_that_needs_numbers_cannot_be_counted():
    with torch.device("meta"):
        network = Looking()
    with pytest.raises(RuntimeError, match="meta"):
        call_of_shapes(network, torch.zeros(1, 1, 6, 6), torch.zeros(1))


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
