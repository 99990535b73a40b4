"""The state of a training run, and its files."""

import csv
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from ddpmbench.checkpoints.native import TRAINED, write_native
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.files import os_errors, replacing
from ddpmbench.train.recipe import TrainingRecipe
from ddpmbench.unet.unet import UNet


class TrainingState:
    """Weights, moving average, optimizer state and training curve."""

    def __init__(self, recipe: TrainingRecipe, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = UNet(recipe.network)
        # Ho et al. begin with an output of zero.
        for parameter in network.conv_out.parameters():
            torch.nn.init.zeros_(parameter)
        self.network = network.to(device)
        self.average = {name: w.detach().clone() for name, w in network.state_dict().items()}
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=recipe.learning_rate)
        self.step = 0
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self.losses: list[Tensor] = []  # since the last point of the curve

    @property
    def is_finite(self) -> bool:
        """Whether all weights, averages and losses since the last point are finite."""
        tensors = [*self.network.state_dict().values(), *self.average.values(), *self.losses]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the state atomically."""
        state = {
            "fingerprint": fingerprint,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "losses": self.losses,
        }
        with replacing(path) as temporary, os_errors(), temporary.open("wb") as file:
            torch.save(state, file)

    def restore(self, path: Path, fingerprint: str, device: torch.device) -> None:
        """Load a saved state; refuses that of another recipe or other images."""
        try:
            state = torch.load(path, map_location=device, weights_only=True)
            saved = state["fingerprint"]
        except Exception as error:  # torch.load raises many kinds of errors for damaged files
            raise InputError(f"{path}: damaged; name a new folder with `out`") from error
        if saved != fingerprint:
            raise InputError(
                f"`out={path.parent}`: holds the training run of another recipe or other images; "
                "choose another folder"
            )
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve, self.losses = state["curve"], state.get("losses", [])


def publish(
    state: TrainingState, recipe: TrainingRecipe, model: Checkpoint, images: ImageSet, folder: Path
) -> None:
    """Write the moving average as a native checkpoint, and the training curve."""
    with (
        replacing(folder / "training_curve.csv") as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["step", "loss"])
        writer.writerows(state.curve)
    record = {
        "recipe": recipe.to_dict(),
        "steps": state.step,
        "data": images.record,
        "num_images": len(images),
        "final_loss": state.curve[-1][1] if state.curve else None,
        "seconds": round(state.seconds, 1),
        "torch": torch.__version__,
    }
    write_native(folder / TRAINED, model, weights=state.average, training=record)


def fingerprint_of(recipe: TrainingRecipe, images: ImageSet) -> str:
    """Hexadecimal digest of the recipe and the images."""
    text = json.dumps([recipe.to_dict(), images.sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
