"""Train the network as people do, and save its state dict, which says nothing of how it was."""

import argparse
import logging
from pathlib import Path

import torch
from network import NUM_TIMESTEPS, SmallUNet
from torch import Tensor
from torch.nn import functional as F

import ddpmbench as db

HELD_OUT = 1000
"""The first images of the set are left to the evaluation."""


def training_images() -> Tensor:
    """(N, 1, 28, 28) in [-1, 1]: the Fashion-MNIST images in the package, but for the first."""
    pixels = db.load_images("fashion-mnist:test").pixels[HELD_OUT:]
    return torch.tensor(pixels) / 127.5 - 1


def train(steps: int, *, batch_size: int = 32, seed: int = 0) -> SmallUNet:
    """The network after so many steps of Algorithm 1 of Ho et al. 2020."""
    torch.manual_seed(seed)
    images, network = training_images(), SmallUNet()
    alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, NUM_TIMESTEPS)).cumprod(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        x_start = images[torch.randint(len(images), (batch_size,))]
        t = torch.randint(NUM_TIMESTEPS, (batch_size,))
        eps, kept = torch.randn_like(x_start), alphas_cumprod[t, None, None, None]
        x_t = kept.sqrt() * x_start + (1 - kept).sqrt() * eps
        loss = F.mse_loss(network(x_t, t), eps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
        if step % 100 == 0:
            logging.info("step %d of %d: loss %.4f", step, steps, loss.item())
    return network


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("weights.pt"))
    given = parser.parse_args()
    torch.save(train(given.steps).state_dict(), given.out)
