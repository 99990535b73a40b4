"""Training: Algorithm 1 of Ho et al. 2020, for every family of forward processes.

Every training step draws its images, timesteps and noise from a generator seeded by (seed, step),
so a resumed run equals an uninterrupted one.
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpmbench.checkpoints.native import TRAINED, write_native
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.noise import philox_4x32
from ddpmbench.diffusion.process import GaussianDiffusion, Prediction
from ddpmbench.errors import InputError, whole_number
from ddpmbench.execution.devices import available_memory, is_out_of_memory
from ddpmbench.files import os_errors, replacing, writing_to
from ddpmbench.train.objectives import sliced_loss, training_loss, twice_differentiable
from ddpmbench.train.recipe import TrainingRecipe
from ddpmbench.unet.unet import UNet

CURVE_INTERVAL = 50
"""Training steps averaged in each point of the training curve."""
MOST_STEPS = 10**9
SAVE_SECONDS = 60.0
"""Seconds between saves; a killed run loses no more work than that."""
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_FLOAT = 4
_COPIES = 5
"""Copies of the weights in memory: weights, moving average, gradient, and Adam's two moments."""


def check_memory(recipe: TrainingRecipe, device: torch.device) -> None:
    """Refuse a run that needs more memory than the GPU has, or than is free on the CPU.

    Raises:
        InputError: the weights and a lower bound of the activations (the last convolution of each
            block) need more.
    """
    network = recipe.network
    weights = _COPIES * _FLOAT * network.least_parameters
    activations = recipe.batch_size * (2 if recipe.precision == "bf16" else _FLOAT)
    activations *= network.blocks_a_level * sum(
        channels * max(recipe.image_size >> level, 1) ** 2
        for level, channels in enumerate(network.channels)
    )
    has = _memory_of(device)
    for needs, problem, remedy in (
        (weights, "`channels`, `num_blocks`: training this network", "lower them"),
        (
            weights + activations,
            f"`batch_size={recipe.batch_size}`: a step of training",
            "lower `batch_size`, `channels` or `num_blocks`",
        ),
    ):
        if needs > has:
            limit = f"{has / 1e9:,.1f} GB"
            limit = f"the device has {limit}" if device.type == "cuda" else f"{limit} are free"
            raise InputError(
                f"{problem} takes more than {needs / 1e9:,.1f} GB of memory, and {limit}; {remedy}"
            )


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_memory()


class TrainingState:
    """Weights, moving average, optimizer state and training curve."""

    def __init__(self, recipe: TrainingRecipe, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = UNet(recipe.network)
        # Ho et al. initialize the output to zero.
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
        """Load a saved state; refuse that of another recipe or other images."""
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
        self.curve, self.losses = state["curve"], state["losses"]


@dataclasses.dataclass(frozen=True)
class TrainingProgress:
    """Progress of a training run.

    Attributes:
        step: training steps completed.
        total: training steps in total.
        loss: mean loss over the last interval; None before the first.
    """

    step: int
    total: int
    loss: float | None


def train(
    recipe: TrainingRecipe,
    images: ImageSet,
    folder: Path,
    *,
    steps: int,
    device: torch.device,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> Path:
    """Train a DDPM, or resume the training run in the folder.

    Args:
        recipe: the network and the training settings.
        images: the training images.
        folder: receives `checkpoint.safetensors` (moving average, native format),
            `training_curve.csv` and `training_state.pt`.
        steps: training steps in total; a larger number continues a finished run.
        device: the device to train on.
        on_progress: called at each point of the training curve.

    Returns:
        The path of the native checkpoint.

    Raises:
        InputError: the folder holds another run, the images do not fit the network, the run does
            not fit into memory, or the loss is not finite.

    Source: Ho, Jain & Abbeel 2020, Algorithm 1.
    """
    steps = whole_number("steps", steps, 1, MOST_STEPS)
    check_memory(recipe, device)
    fingerprint = _fingerprint(recipe, images)
    state = TrainingState(recipe, device)
    model = _model(recipe, state.network)
    model.check_images(images.pixels.shape[1:], images.source)
    state_path = folder / "training_state.pt"
    _claim(folder, state_path)
    if state_path.exists():
        state.restore(state_path, fingerprint, device)
    if state.step > steps:
        raise InputError(
            f"`steps={steps}`: the run in {folder} is already at step {state.step}; ask for more, "
            "or name a new folder"
        )
    diffusion = model.diffusion.to(device)
    state.network.train()
    on_progress(TrainingProgress(state.step, steps, None))
    start = time.perf_counter() - state.seconds
    saved = time.perf_counter()
    with _between_steps() as received:
        while state.step < steps:
            with _fitting_memory(recipe):
                state.losses.append(_train_step(state, recipe, model, diffusion, images, device))
            state.seconds = time.perf_counter() - start
            is_point = state.step % CURVE_INTERVAL == 0 or state.step == steps
            is_due = time.perf_counter() - saved >= SAVE_SECONDS
            is_saved = is_due or state.step == steps or bool(received)
            if (is_point or is_saved) and not state.is_finite:
                raise InputError(_divergence(state, folder))
            if is_point:
                on_progress(TrainingProgress(state.step, steps, _end_interval(state)))
            if is_saved:
                with writing_to(folder):
                    state.save(state_path, fingerprint)
                    _publish(state, recipe, model, images, folder)
                saved = time.perf_counter()
            if received:
                signal.raise_signal(received[0])
                raise KeyboardInterrupt  # where nothing else is done about the signal
    return folder / TRAINED


@contextlib.contextmanager
def _between_steps() -> Iterator[list[int]]:
    """Within, the first signal that would interrupt is kept, so that the step completes.

    A second one interrupts, and so does the first if it is raised again. Signals that are ignored,
    or that end the process, still do.
    """
    received: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        before = {n: handler for n in numbers if callable(handler := signal.getsignal(n))}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: object) -> None:
        restore()
        received.append(number)

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()


def _divergence(state: TrainingState, folder: Path) -> str:
    remark = " (the last good checkpoint is kept)" if (folder / TRAINED).exists() else ""
    return (
        f"training diverged before step {state.step}: the loss or a weight is not finite{remark}; "
        "lower `learning_rate`, and name a new folder with `out`"
    )


@contextlib.contextmanager
def _fitting_memory(recipe: TrainingRecipe) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"`batch_size={recipe.batch_size}`: a step of training does not fit into memory; lower "
            "`batch_size`, `channels` or `num_blocks`"
        ) from error


def _end_interval(state: TrainingState) -> float:
    loss = float(torch.stack(state.losses).mean())
    state.losses = []
    state.curve.append((state.step, loss))
    return loss


def _claim(folder: Path, state_path: Path) -> None:
    with writing_to(folder):
        if folder.is_dir() and any(folder.iterdir()) and not state_path.exists():
            raise InputError(f"`out={folder}`: holds files but no training run; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)


def _model(recipe: TrainingRecipe, network: UNet) -> Checkpoint:
    return Checkpoint(
        network=network,
        schedule=recipe.noise_schedule(),
        prediction=Prediction.EPSILON,
        variance=recipe.variance,
        channels=recipe.network.in_channels,
        image_size=recipe.image_size,
        size_multiple=recipe.network.size_multiple,
        family="native",
        source="the network asked for",
        sha256="",
        weights="ema",
    )


def _train_step(
    state: TrainingState,
    recipe: TrainingRecipe,
    model: Checkpoint,
    diffusion: GaussianDiffusion,
    images: ImageSet,
    device: torch.device,
) -> Tensor:
    generator = _step_generator(recipe.seed, state.step)
    size, batch = len(images), recipe.batch_size
    index = torch.randint(size, (batch,), generator=generator)
    t = torch.randint(1, recipe.num_timesteps + 1, (batch,), generator=generator).to(device)
    x_start = UNIT_RANGE.to_model(torch.from_numpy(images.pixels[index.numpy()]), torch.float32)
    if recipe.horizontal_flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        x_start = torch.where(mirrored[:, None, None, None], x_start.flip(-1), x_start)
    eps = torch.randn(x_start.shape, generator=generator).to(device)
    x_start = x_start.to(device)
    x_t = diffusion.q_sample(x_start.to(diffusion.dtype), t, eps)
    is_sliced = recipe.objective == "sliced"
    x_t.requires_grad_(is_sliced)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"),
        twice_differentiable() if is_sliced else contextlib.nullcontext(),
    ):
        torch.manual_seed(generator.initial_seed())  # for dropout
        output = model.model_output(x_t, t).float()
    if is_sliced:
        probe = torch.randint(2, x_t.shape, generator=generator).to(x_t) * 2 - 1
        loss = sliced_loss(diffusion, x_t, t, output, probe)
    else:
        loss = training_loss(recipe.objective, diffusion, x_start, t, eps, output)
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate * min(1.0, (state.step + 1) / recipe.warmup_steps)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), recipe.gradient_clip)
    state.optimizer.step()
    state.step += 1
    decay = min(recipe.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for name, weight in state.network.state_dict().items():
            state.average[name].lerp_(weight, 1 - decay)
    return loss.detach()


def _step_generator(seed: int, step: int) -> torch.Generator:
    zero = torch.zeros((), dtype=torch.int64)
    words = philox_4x32((torch.tensor(step), zero, zero, zero), seed)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


def _publish(
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


def _fingerprint(recipe: TrainingRecipe, images: ImageSet) -> str:
    """Hexadecimal digest of the recipe and the images."""
    text = json.dumps([recipe.to_dict(), images.sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
