"""Training a reference DDPM: Algorithm 1 of Ho et al. 2020, so that there is something to evaluate.

Every step draws its images, steps and noise from a generator seeded by (seed, step), so that a
run that was interrupted and resumed is the run that was not.
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.files import naming, replacing
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.checkpoints.load import TRAINED
from ddpmbench.inputs.checkpoints.native import write_native
from ddpmbench.inputs.images import ImageSet
from ddpmbench.likelihood.terms import diffusion_terms
from ddpmbench.network.unet import UNet, UNetConfig
from ddpmbench.process.diffusion import GaussianDiffusion
from ddpmbench.process.noise import philox_4x32
from ddpmbench.process.prediction import Prediction, Variance
from ddpmbench.process.schedule import NoiseSchedule
from ddpmbench.process.units import to_unit_range

Objective = Literal["simple", "vlb", "hybrid"]

HYBRID_WEIGHT = 0.001
"""lambda of L_hybrid = L_simple + lambda L_vlb (Nichol & Dhariwal 2021, section 3.1)."""
CURVE_INTERVAL = 50
"""Steps whose mean loss is one point of the training curve."""
SAVE_SECONDS = 60.0
"""A run is saved at least this often; a killed run loses no more work than that."""


@dataclasses.dataclass(frozen=True)
class TrainingRecipe:
    """What determines a training run besides its data and its length.

    Attributes:
        network: the U-Net.
        image_size: height and width of an image.
        schedule: name of the noise schedule, one of `NoiseSchedule`'s constructors of T alone.
        num_timesteps: T.
        variance: of the reverse process; learned_range for the objective "hybrid".
        objective: "simple" is L_simple (Ho et al. 2020, eq. 14), "vlb" the bound itself with t
            uniform, "hybrid" L_simple + 0.001 L_vlb with the mean held fixed in the latter
            (Nichol & Dhariwal 2021, eq. 16).
        batch_size: images a step.
        learning_rate: of Adam, after the warm-up.
        warmup_steps: steps over which the learning rate rises linearly.
        ema_decay: of the moving average of the weights; it starts at (1 + step) / (10 + step).
        gradient_clip: largest norm of the gradient.
        horizontal_flip: whether images are mirrored at random.
        precision: "fp32", or "bf16" for the network's forward pass.
        seed: of the weights, the order of images, the steps and the noise.
    """

    network: UNetConfig
    image_size: int
    schedule: str = "linear"
    num_timesteps: int = 1000
    variance: Variance = Variance.FIXED_LARGE
    objective: Objective = "simple"
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup_steps: int = 1000
    ema_decay: float = 0.9999
    gradient_clip: float = 1.0
    horizontal_flip: bool = False
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an objective that does not go with the variance."""
        if self.objective == "hybrid" and not self.variance.is_learned:
            raise InputError("--objective hybrid needs --variance learned_range")
        if self.objective == "simple" and self.variance.is_learned:
            raise InputError(
                "--objective simple does not train a variance; use --objective hybrid or vlb"
            )
        for name, value in (
            ("learning-rate", self.learning_rate),
            ("batch-size", self.batch_size),
            ("gradient-clip", self.gradient_clip),
            ("warmup-steps", self.warmup_steps),
        ):
            if not 0 < value < math.inf:
                raise InputError(f"--{name} {value}: must be positive and finite")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"--seed {self.seed}: choose a whole number from 0 to 2^64 - 1")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class TrainingProgress:
    """Where a training run stands.

    Attributes:
        step: steps done.
        total: steps asked for.
        loss: mean loss of the last interval of steps; None before the first.
    """

    step: int
    total: int
    loss: float | None


class _State:
    """Everything a training run carries from one step to the next."""

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

    def save(self, path: Path, fingerprint: str) -> None:
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
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path, fingerprint: str, device: torch.device) -> None:
        try:
            state = torch.load(path, map_location=device, weights_only=True)
            found = state["fingerprint"]
        except Exception as error:  # torch.load raises whatever the damaged bytes lead to
            raise InputError(f"{path}: damaged; name a new folder with --out") from error
        if found != fingerprint:
            raise InputError(
                f"--out {path.parent}: holds the training run of another recipe or other images; "
                "choose another folder"
            )
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve, self.losses = state["curve"], state.get("losses", [])


def train(
    recipe: TrainingRecipe,
    images: ImageSet,
    folder: Path,
    *,
    steps: int,
    device: torch.device,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> Path:
    """Train a DDPM, or go on with the training run that the folder holds.

    Args:
        recipe: what is trained, and how.
        images: what it is trained on.
        folder: receives `checkpoint.safetensors` (moving average, native format),
            `training_curve.csv` and `training_state.pt`.
        steps: length of the run; a finished run goes on if it is asked for more.
        device: where to train.
        on_progress: called at every point of the training curve.

    Returns:
        The path of the native checkpoint.

    Raises:
        InputError: the folder holds another run, or the images do not fit the network.

    Source: Ho, Jain & Abbeel 2020, Algorithm 1.
    """
    fingerprint = _fingerprint(recipe, images)
    state = _State(recipe, device)
    model = _model(recipe, state.network)
    model.check_images(images.pixels.shape[1:], images.source)
    state_path = folder / "training_state.pt"
    _claim(folder, state_path)
    if state_path.exists():
        state.restore(state_path, fingerprint, device)
    if state.step > steps:
        raise InputError(
            f"--steps {steps}: the run in {folder} is already at step {state.step}; ask for more, "
            "or name a new folder"
        )
    diffusion = model.diffusion.to(device)
    state.network.train()
    on_progress(TrainingProgress(state.step, steps, None))
    start = time.perf_counter() - state.seconds
    saved = time.perf_counter()
    with _between_steps() as interrupted:
        while state.step < steps:
            state.losses.append(_train_step(state, recipe, model, diffusion, images, device))
            state.seconds = time.perf_counter() - start
            if state.step % CURVE_INTERVAL == 0 or state.step == steps:
                on_progress(TrainingProgress(state.step, steps, _end_interval(state)))
            is_due = time.perf_counter() - saved >= SAVE_SECONDS
            if is_due or state.step == steps or interrupted.is_set():
                with naming(folder):
                    state.save(state_path, fingerprint)
                    _publish(state, recipe, model, images, folder)
                saved = time.perf_counter()
            if interrupted.is_set():
                raise KeyboardInterrupt
    return folder / TRAINED


@contextlib.contextmanager
def _between_steps() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that no step is cut in two; a second one is as ever."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        interrupted.set()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _end_interval(state: _State) -> float:
    loss = float(torch.stack(state.losses).mean())
    if not math.isfinite(loss):
        raise InputError(
            f"training diverged before step {state.step}: the loss is not finite; "
            "lower --learning-rate"
        )
    state.losses = []
    state.curve.append((state.step, loss))
    return loss


def _claim(folder: Path, state_path: Path) -> None:
    with naming(folder):
        if folder.is_dir() and any(folder.iterdir()) and not state_path.exists():
            raise InputError(f"--out {folder}: holds files but no training run; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)


def _model(recipe: TrainingRecipe, network: UNet) -> Checkpoint:
    return Checkpoint(
        network=network,
        schedule=_schedule(recipe),
        prediction=Prediction.EPSILON,
        variance=recipe.variance,
        channels=recipe.network.in_channels,
        image_size=recipe.image_size,
        size_multiple=recipe.network.size_multiple,
        family="native",
        source="the network asked for",
        sha256="",
    )


def _schedule(recipe: TrainingRecipe) -> NoiseSchedule:
    match recipe.schedule:
        case "linear":
            return NoiseSchedule.linear(recipe.num_timesteps)
        case "cosine":
            return NoiseSchedule.cosine(recipe.num_timesteps)
        case "sigmoid":
            return NoiseSchedule.sigmoid(recipe.num_timesteps)
    raise InputError(f"--schedule {recipe.schedule}: choose linear, cosine or sigmoid")


def _train_step(
    state: _State,
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
    x_start = to_unit_range(torch.from_numpy(images.pixels[index.numpy()]), torch.float32)
    if recipe.horizontal_flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        x_start = torch.where(mirrored[:, None, None, None], x_start.flip(-1), x_start)
    eps = torch.randn(x_start.shape, generator=generator).to(device)
    x_start = x_start.to(device)
    x_t = diffusion.q_sample(x_start.to(diffusion.dtype), t, eps).float()
    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"),
    ):
        torch.manual_seed(generator.initial_seed())  # dropout's
        output = state.network(x_t, model.network_time(t)).float()
    loss = _loss(recipe, diffusion, x_start, t, eps, output)
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


def _loss(
    recipe: TrainingRecipe,
    diffusion: GaussianDiffusion,
    x_start: Tensor,
    t: Tensor,
    eps: Tensor,
    output: Tensor,
) -> Tensor:
    channels = x_start.shape[1]
    simple = (eps - output[:, :channels]).square().mean()
    if recipe.objective == "simple":
        return simple
    if recipe.objective == "hybrid":
        frozen = torch.cat([output[:, :channels].detach(), output[:, channels:]], dim=1)
        bound = _bound_estimate(diffusion, x_start, t, eps, frozen)
        return simple + HYBRID_WEIGHT * bound
    return _bound_estimate(diffusion, x_start, t, eps, output)


def _bound_estimate(
    diffusion: GaussianDiffusion, x_start: Tensor, t: Tensor, eps: Tensor, output: Tensor
) -> Tensor:
    # Clipping would cut the gradient where it matters; the bound is trained without it.
    unclipped = dataclasses.replace(diffusion, clip=False)
    terms = diffusion_terms(unclipped, x_start, t, eps, output)
    return diffusion.schedule.num_timesteps * terms.nats.mean()


def _step_generator(seed: int, step: int) -> torch.Generator:
    zero = torch.zeros((), dtype=torch.int64)
    words = philox_4x32((torch.tensor(step), zero, zero, zero), seed)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


def _publish(
    state: _State, recipe: TrainingRecipe, model: Checkpoint, images: ImageSet, folder: Path
) -> None:
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
        "data": {"source": images.source, "split": images.split, "sha256": images.sha256},
        "num_images": len(images),
        "final_loss": state.curve[-1][1] if state.curve else None,
        "seconds": round(state.seconds, 1),
        "torch": torch.__version__,
    }
    write_native(folder / TRAINED, model, weights=state.average, training=record)


def _fingerprint(recipe: TrainingRecipe, images: ImageSet) -> str:
    text = json.dumps([recipe.to_dict(), images.sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
