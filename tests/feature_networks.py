"""A small TorchScript network with the interface of inception-2015-12-05.pt."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F


class Layers(nn.Module):
    def __init__(self, num_features: int):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 7, stride=6)
        self.second = nn.Conv2d(16, num_features, 3, stride=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(torch.relu(self.second(torch.tanh(self.first(x)))), 1)


class Network(nn.Module):
    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.layers = Layers(num_features)
        self.output = nn.Linear(num_features, num_classes)

    def forward(
        self,
        x: torch.Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> torch.Tensor:
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128).flatten(1)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight)
        return F.softmax(logits if no_output_bias else logits + self.output.bias, dim=1)


def write_network(path, *, num_features=2048, num_classes=1008, seed=0):
    """Random weights, the same for the same seed."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is to go, one day
        torch.manual_seed(seed)
        network = Network(num_features, num_classes).eval()
        torch.jit.script(network).save(str(path))
    return path
