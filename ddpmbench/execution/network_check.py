"""The checks of a network before a run: evaluations of two images, for all but our own U-Net.

The bound and the samples assume that the output is a finite tensor of the right shape, a
deterministic function of each image alone, that the input is left unchanged, and that what a user's
code draws at random does not reach the output. A bound in continuous time assumes that the network
takes any time between the timesteps of its training.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.custom import LABELS, signature_of
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import evaluating_checkpoint, is_out_of_memory, strict_float32
from ddpmbench.execution.distributed import Ranks
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import (
    calling,
    changed_default,
    described_value,
    other_random_numbers,
    torch_defaults,
)

_BATCH_TOLERANCE = 1e-2
"""Relative to the largest output: far more than the rounding that a batch size changes."""
_REPEAT_TOLERANCE = 1e-5
"""Likewise, far more than a changed order of summation."""
_NUM_PROJECTIONS = 8
_ADAPTER = (
    "name an adapter in its place, a module with self.net = Net() whose forward(self, x_t, time) "
    "calls it as it was trained (docs/reference/checkpoints.md has one)"
)
_TIMES = frozenset(
    {"t", "ts", "time", "times", "timestep", "timesteps", "step", "steps"}
    | {"sigma", "noise_level", "noise_levels", "noise_labels"}
)
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_network(
    checkpoint: Checkpoint,
    shape: tuple[int, ...],
    *,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Checkpoint:
    """Evaluate a network on two images, and refuse one that cannot be evaluated reliably.

    The U-Net of this package is known and is not evaluated. Running out of memory is not an error
    here.

    Args:
        checkpoint: the model.
        shape: (C, H, W) of an image.
        device: where it will be evaluated.
        ranks: the processes of the run, of which the first evaluates it; None for a single one.

    Returns:
        The checkpoint on the device, with the numbers that identify its output.

    Raises:
        InputError: the network fails, or its output violates the conventions; one line.
    """
    checkpoint = checkpoint.to(device)
    if isinstance(checkpoint.network, UNet):
        return checkpoint

    def output_of(checkpoint: Checkpoint) -> Tensor | None:
        with _quietly(checkpoint), contextlib.suppress(torch.OutOfMemoryError, MemoryError):
            return _NetworkCheck(checkpoint.to(device), shape, device).run()
        return None

    def check() -> tuple[float, ...]:
        if (output := output_of(checkpoint)) is None:
            return ()
        with other_random_numbers():
            again = _built_again(checkpoint)
            other = None if again is None else output_of(again)
        if other is not None and not _alike(output, other, _REPEAT_TOLERANCE):
            raise InputError(
                f"{checkpoint.network_name}: gives another output when its code is run again with "
                "other random numbers, so that it is not what was trained; save what is random in "
                "it as a buffer, or draw it with a seed"
            )
        return _numbers_of(output[:2])

    numbers = check() if ranks is None else ranks.once(check)
    return dataclasses.replace(checkpoint, output_numbers=numbers)


def _built_again(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint with the network that the user's code now builds.

    None without such code, without the memory for another network, or if its files are not those
    that were loaded any more.

    Raises:
        InputError: the code fails this time.
    """
    if checkpoint.again is None:
        return None
    try:
        built = checkpoint.again()
    except MemoryError:
        return None
    except InputError as error:
        if is_out_of_memory(error.__cause__ or error):
            return None
        raise InputError(
            f"{error} (in a second run of its code, which shows whether random numbers reach the "
            "output; let it run twice in one process)"
        ) from error
    if built is None or built.code != checkpoint.code:
        return None
    return dataclasses.replace(checkpoint, network=built.network, modules=built.modules)


@contextlib.contextmanager
def _quietly(checkpoint: Checkpoint) -> Iterator[None]:
    """Within, the network is evaluated in strict float32, and the process is left as it was."""
    with (
        torch.inference_mode(),
        torch.random.fork_rng(devices=[]),
        evaluating_checkpoint(checkpoint),
        strict_float32(),
    ):
        yield


def _noise(count: int, shape: tuple[int, ...]) -> Tensor:
    """(count, C, H, W) normal noise, always the same."""
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))


class _NetworkCheck:
    """Two images at the first, last and middle timestep, together, one alone, one behind another.

    The other is of another mean and scale. An output may depend on those, or on the image or the
    time that stands first or last in the batch.
    """

    def __init__(
        self, checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device
    ) -> None:
        self._checkpoint = checkpoint
        self._name = checkpoint.network_name
        numbers = _noise(2, shape)
        total, last = checkpoint.schedule.num_timesteps, max(checkpoint.num_classes - 1, 0)
        steps = torch.tensor([1, total, (total + 1) // 2], device=device)
        labels = [0, last if checkpoint.null_class is None else checkpoint.null_class, last]
        self._inputs = {
            "x_t": numbers[[0, 1, 1]].to(device),
            "time": checkpoint.network_time(steps),
            "labels": torch.tensor(labels, device=device),
        }
        self._other = torch.stack([numbers[0], 1 + 2 * numbers[1]]).to(device)
        if not checkpoint.num_classes:
            del self._inputs["labels"]

    def run(self) -> Tensor:
        """The output for the images together, (3, C, H, W) or (3, 2C, H, W)."""
        checkpoint = self._checkpoint
        has_classes, wrapped = bool(checkpoint.num_classes), checkpoint.code is None
        if why := refused_call(checkpoint.network, has_classes=has_classes, wrapped=wrapped):
            raise InputError(f"{self._name}: {why}")
        every, again, alone = self._output(0, 1, 2), self._output(0, 1, 2), self._output(0)
        if not _alike(every, again, _REPEAT_TOLERANCE):
            raise InputError(
                f"{self._name}: gives another output for the same input each time; turn off what "
                "is random in evaluation, such as F.dropout without training=self.training, and "
                "what a call leaves behind for the next"
            )
        behind = self._output(1, 0, x_t=self._other)
        if not all(_alike(one[-1:], every[:1], _BATCH_TOLERANCE) for one in (alone, behind)):
            raise InputError(
                f"{self._name}: an image's output depends on the other images of its batch, as of "
                "a batch normalization that ignores eval(); reduce over the dimensions of each "
                "image alone"
            )
        return every

    def _output(self, *rows: int, x_t: Tensor | None = None) -> Tensor:
        given = self._inputs | ({} if x_t is None else {"x_t": x_t})
        inputs = {name: tensor[list(rows)] for name, tensor in given.items()}
        defaults = torch_defaults()
        with _watching_embeddings(self._checkpoint, inputs["time"], self._name):
            try:
                output = calling(lambda: self._checkpoint.network(*inputs.values()), self._name)
            except InputError as error:
                if error.__cause__ is None:
                    raise
                if is_out_of_memory(error.__cause__ or error):
                    raise MemoryError from error
                raise InputError(
                    f"{error}; it was called with {self._shown(inputs)}{_on_gradients(error)}"
                ) from error
        if (call := changed_default(defaults)) is not None:
            raise InputError(
                f"{self._name}: a call leaves another default of torch behind ({call}), which "
                "would change the evaluation; set it back before it returns"
            )
        if not torch.equal(inputs["x_t"], given["x_t"][list(rows)]):
            raise InputError(
                f"{self._name}: changes x_t, its input, in place; begin with x_t = x_t.clone() or "
                "write x = x + ... in place of x += ..."
            )
        return self._checked(output, inputs["x_t"]).float()

    def _checked(self, output: object, x_t: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise InputError(
                f"{self._name}: gives {described_value(output)}, not a tensor; name an adapter, a "
                "module with self.net = Net() whose forward(self, x_t, time) returns the "
                "prediction alone, as self.net(x_t, time)[0] or .sample"
            )
        self._checkpoint.check_output(output.shape, x_t.shape)
        if not output.is_floating_point():
            raise InputError(
                f"{self._name}: gives {_dtype(output)}, not floating-point numbers; return the "
                "prediction itself, in float32"
            )
        if not bool(output.isfinite().all()):
            raise InputError(
                f"{self._name}: gives NaN or infinite numbers for normal noise as x_t and time "
                f"{self._inputs['time'].tolist()}{_on_random_numbers(self._checkpoint)}"
            )
        return output

    def _shown(self, inputs: Mapping[str, Tensor]) -> str:
        shown = [f"{name} {tuple(t.shape)} {_dtype(t)}" for name, t in inputs.items()]
        low, high, _ = self._inputs["time"].tolist()
        time = f"`time_input={self._checkpoint.time_input}`: {low:g} to {high:g}"
        return f"{', '.join(shown)} ({time})"


def _numbers_of(output: Tensor) -> tuple[float, ...]:
    """Numbers that identify an output.

    They are the logarithm of its root mean square r, and projections <output, z> / (r sqrt(n)) on
    normal noise z.
    """
    flat = output.double().cpu().flatten()
    size = flat.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((_NUM_PROJECTIONS, len(flat)), generator=generator).double()
    numbers = [float(size.log2()), *(noise @ flat / (size * len(flat) ** 0.5)).tolist()]
    return tuple(round(number, 4) for number in numbers)


def _alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    scale = max(float(one.abs().max()), 1e-6)
    return bool((one - other).abs().max() <= tolerance * scale)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _on_random_numbers(checkpoint: Checkpoint) -> str:
    """The remedy for an output of NaN, which may be that of `RandomNumbersAreNaN`."""
    for prefix, module in checkpoint.network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and bool(value.isnan().any()):
                return (
                    f"; {f'{prefix}.{name}' if prefix else name} is NaN, or random and in no file: "
                    "register it as a buffer that is saved, or draw it with "
                    "generator=torch.Generator().manual_seed(SEED)"
                )
    return (
        f"; `time_input={checkpoint.time_input}` must be what it was trained with, and its forward "
        "finite there"
    )


def _on_gradients(error: InputError) -> str:
    """The remedy for a network that needs gradients, which are off here; else empty."""
    text = str(error.__cause__)
    if not any(word in text for word in ("require grad", "requires_grad", "nference tensor")):
        return ""
    return (
        "; networks are called in torch.inference_mode: take gradients with "
        "torch.inference_mode(False), torch.enable_grad() around them and clones of x_t and time"
    )


@contextlib.contextmanager
def _watching_embeddings(checkpoint: Checkpoint, time: Tensor, name: str) -> Iterator[None]:
    """Within, an index outside an embedding is an error on every device.

    On a GPU it would kill the process.
    """

    def watch(module: nn.Module, inputs: tuple[object, ...], named: Mapping[str, object]) -> None:
        assert isinstance(module, nn.Embedding)
        index = inputs[0] if inputs else named.get("input")
        if not isinstance(index, Tensor) or not index.numel() or index.is_floating_point():
            return
        rows, low, high = module.num_embeddings, int(index.min()), int(index.max())
        if low >= 0 and high < rows:
            return
        line = f"an nn.Embedding of {rows} rows is asked for row {low if low < 0 else high}"
        if index.numel() == time.numel() and bool((index.flatten() == time).all()):
            line += (
                f"; `time_input={checkpoint.time_input}` and the schedule's "
                f"{checkpoint.schedule.num_original_timesteps} steps do, and one of the two is not "
                "as it was trained (index counts from 0, one-based from 1)"
            )
        raise InputError(f"{name}: {line}")

    # A subclass may take other inputs.
    embeddings = [m for m in checkpoint.network.modules() if type(m) is nn.Embedding]
    handles = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def refused_call(network: nn.Module, *, has_classes: bool, wrapped: bool = False) -> str | None:
    """Why a network cannot be called with x_t, time and labels by position, with the remedy.

    Args:
        network: the network.
        has_classes: whether labels are passed.
        wrapped: whether an argument of wrap_network, not an attribute of the network, says so.

    Returns:
        The rest of a line that begins with the network's name; None if the call is possible.
    """
    if (parameters := signature_of(network)) is None:
        return None
    given = ["x_t", "time", *(["labels"] if has_classes else [])]
    named = [p.name for p in parameters.values() if p.kind in _POSITIONAL]
    takes = f"its forward({', '.join(parameters)})"
    called = f"is called with {', '.join(given[:-1])} and {given[-1]}"
    source = "wrap_network's argument" if wrapped else "the network's attribute"
    try:
        inspect.Signature(list(parameters.values())).bind(*given)
    except TypeError:
        if has_classes and len(named) < len(given):
            return (
                f"{called}, because of {source} num_classes, and {takes} takes fewer by position; "
                f"without classes leave num_classes out, else {_ADAPTER}"
            )
        required = [p for p in parameters.values() if p.default is p.empty and p.kind not in _MANY]
        more = [p.name for p in required if p.name not in named[: len(given)]]
        if not has_classes and len(more) == 1 and more == named[2:3]:
            return (
                f"{called}, and {takes} needs {more[0]} too; where that is the class, give "
                f"{source} num_classes = 10 (and null_class = 10 where class 10 stands for none), "
                f"else {_ADAPTER}"
            )
        return f"{called}, and {takes} takes something else; {_ADAPTER}"
    for place, (role, names) in enumerate([("time is", _TIMES), ("labels are", LABELS)], start=1):
        elsewhere = [n for i, n in enumerate(named) if i != place and n in names]
        if elsewhere and place < min(len(given), len(named)) and named[place] not in names:
            return (
                f"{called} in this order, and {takes} has {named[place]} where {role} given and "
                f"{elsewhere[0]} elsewhere; {_ADAPTER}"
            )
    return None


# ---- continuous time

CONTINUOUS_FROM = 10_000
"""Network evaluations from which on a run estimates its bound in continuous time as well."""

_TIME_TOLERANCE = 1e-3
"""Relative to the change between timesteps, or to the output: far more than rounding."""


def why_not_continuous(
    checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device
) -> str | None:
    """Why a model cannot be evaluated in continuous time; None if it can.

    Any network but this package's U-Net is evaluated at two timesteps and between them.

    Args:
        checkpoint: the model, on the device.
        shape: (C, H, W) of an image.
        device: where the network is evaluated.
    """
    schedule = checkpoint.as_trained.schedule
    if checkpoint.prediction is Prediction.PREVIOUS_MEAN:
        return "the network predicts the mean at its next timestep, and has none between two"
    if schedule.num_timesteps != schedule.num_original_timesteps:
        return f"the model visits {schedule.num_timesteps} of its timesteps only"
    if schedule.num_timesteps < 2:
        return "the model has a single timestep"
    if isinstance(checkpoint.network, UNet):
        return None
    with _quietly(checkpoint):
        try:
            return _why_integers_only(checkpoint.as_trained, shape, device)
        except InputError as error:
            if error.__cause__ is not None and is_out_of_memory(error.__cause__ or error):
                return None
            return f"it takes whole timesteps only ({error})"


def why_left_out(
    checkpoint: Checkpoint,
    shape: tuple[int, ...],
    requested: bool | None,
    num_evaluations: int,
    *,
    device: torch.device,
) -> str | None:
    """Why a run does not estimate the bound in continuous time as well; None if it does.

    Raises:
        InputError: it is requested, but the model has none.
    """
    if checkpoint.schedule.is_continuous:
        if requested:
            raise InputError(
                "`continuous=True`: the run itself is in continuous time; leave one of them out"
            )
        return "the run is in continuous time"
    if checkpoint.schedule.trained is not None:
        return "the model visits timesteps between those of its training"
    if requested is False:
        return "`continuous=False` left it out"
    if requested is None and num_evaluations < CONTINUOUS_FROM:
        return "the run is short; `continuous=True` asks for it"
    why = why_not_continuous(checkpoint, shape, device)
    if why is not None and requested:
        raise InputError(
            f"`continuous=True`: {checkpoint.network_name} has no bound in continuous time: {why}; "
            "leave it out"
        )
    return why


def _why_integers_only(
    checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device
) -> str | None:
    """Why the outputs at a timestep, beyond it and at the next rule it out; None if they do not.

    Raises:
        InputError: the network fails.
    """
    x = _noise(1, shape).to(device)
    labels = torch.zeros(1, dtype=torch.int64, device=device) if checkpoint.num_classes else None
    t = max(checkpoint.schedule.num_timesteps // 2, 1)

    def output(timestep: float) -> Tensor:
        time = torch.tensor([timestep], device=device)
        result: Tensor = calling(
            lambda: checkpoint.model_output(x.clone(), time, labels), checkpoint.network_name
        )
        return result

    integer, low, between, high = output(t), output(float(t)), output(t + 0.5), output(t + 1.0)
    change = float((high - low).abs().max())
    if not _is_near(integer, low, max(change, float(integer.abs().max()))):
        return "it reads a timestep that is given as a floating-point number otherwise"
    if not bool(between.isfinite().all()):
        return "its output between two timesteps is not finite"
    if change > 0 and (_is_near(between, low, change) or _is_near(between, high, change)):
        return "it rounds the time that it is given to a whole timestep"
    return None


def _is_near(one: Tensor, other: Tensor, scale: float) -> bool:
    return float((one - other).abs().max()) <= _TIME_TOLERANCE * scale


def check_continuous(
    checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device, *, remedy: str
) -> None:
    """Refuse a model that cannot be evaluated between its timesteps; see `why_not_continuous`.

    Raises:
        InputError: the model cannot; the message ends with the remedy.
    """
    why = why_not_continuous(checkpoint, shape, device)
    if why is not None:
        raise InputError(
            f"{checkpoint.network_name}: cannot be evaluated between its timesteps: {why}; {remedy}"
        )
