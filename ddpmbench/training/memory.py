"""Does a training run fit into memory? Asked before anything is built."""

import torch

from ddpmbench.errors import InputError
from ddpmbench.runs.memory import available_memory
from ddpmbench.training.recipe import TrainingRecipe

_FLOAT = 4
_COPIES = 5
"""Of the weights: they, their average, the gradient, and Adam's two moments."""


def check_memory(recipe: TrainingRecipe, device: torch.device) -> None:
    """Refuse a run that needs more memory than a GPU has, or than is free for a CPU.

    Raises:
        InputError: weights and activations take more, counted as if the network had only the last
            convolution of each block.
    """
    has = _memory_of(device)
    limit = f"the device has {_size(has)}" if device.type == "cuda" else f"{_size(has)} are free"
    weights = _COPIES * _FLOAT * recipe.network.least_parameters
    if weights > has:
        raise InputError(
            f"--channels, --num-blocks: training such a network takes more than {_size(weights)} "
            f"of memory, and {limit}; lower them"
        )
    activations = _least_activations(recipe)
    if weights + activations > has:
        raise InputError(
            f"--batch-size {recipe.batch_size}: a step of training takes more than "
            f"{_size(weights + activations)} of memory, and {limit}; lower "
            "--batch-size, --channels or --num-blocks"
        )


def _least_activations(recipe: TrainingRecipe) -> int:
    network, bytes_each = recipe.network, 2 if recipe.precision == "bf16" else _FLOAT
    numbers = sum(
        network.blocks_a_level * channels * max(recipe.image_size >> level, 1) ** 2
        for level, channels in enumerate(network.channels)
    )
    return recipe.batch_size * numbers * bytes_each


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_memory()


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
