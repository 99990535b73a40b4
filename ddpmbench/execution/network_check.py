"""The check of a network before a run: one call on two images, for any but this package's U-Net.

The bound and the samples assume that the output is a finite tensor of the right shape, a
deterministic function of each image alone, and that the input is left unchanged.
"""

import contextlib
import dataclasses
import hashlib
import inspect
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.custom import LABELS, signature_of
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import evaluating_checkpoint, strict_float32
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine import is_out_of_memory
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import calling, changed_default, described_value, torch_defaults

_TOLERANCE = 1e-2
"""Of the largest output: far more than another batch size changes by rounding."""
_SAME = 1e-5
"""Likewise, far more than the same call twice changes by the order of sums."""
_NUM_PROJECTIONS = 8


def check_network(
    checkpoint: Checkpoint,
    shape: tuple[int, ...],
    *,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Checkpoint:
    """Call a network on two images, and refuse one that cannot be evaluated.

    The U-Net of this package is known and is not called. Memory that does not suffice is no error
    here.

    Args:
        checkpoint: the model.
        shape: (C, H, W) of an image.
        device: where it will run.
        ranks: the processes of the run, of which the first calls it; None for a single one.

    Returns:
        The checkpoint to evaluate: on the device, with the digest of the output in its
        fingerprint.

    Raises:
        InputError: the network fails, or its output is not as the conventions state; one line.
    """
    checkpoint = checkpoint.to(device)
    if isinstance(checkpoint.network, UNet):
        return checkpoint
    if ranks is None:
        digest = _check(checkpoint, shape, device)
    else:
        digest = ranks.once(lambda: _check(checkpoint, shape, device))
    return dataclasses.replace(checkpoint, call_digest=digest)


def _check(checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device) -> str:
    """The digest of the output; empty where memory does not suffice."""
    check = _NetworkCheck(checkpoint, shape, device)
    with (
        torch.inference_mode(),
        torch.random.fork_rng(devices=[]),
        evaluating_checkpoint(checkpoint),
        strict_float32(),
        contextlib.suppress(torch.OutOfMemoryError, MemoryError),
    ):
        return check.run()
    return ""


class _NetworkCheck:
    """Two images at the first and the last timestep, together and one alone."""

    def __init__(
        self, checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device
    ) -> None:
        self._checkpoint = checkpoint
        numbers = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
        self._x_t = numbers.to(device)
        steps = torch.tensor([1, checkpoint.schedule.num_timesteps], device=device)
        self._time = checkpoint.network_time(steps)
        last = max(checkpoint.num_classes - 1, 0)
        null = checkpoint.null_class
        self._labels = torch.tensor([0, last if null is None else null], device=device)
        self._who = checkpoint.network_name

    def run(self) -> str:
        checkpoint = self._checkpoint
        why = refused_call(
            checkpoint.network,
            has_classes=bool(checkpoint.num_classes),
            wrapped=checkpoint.code is None,
        )
        if why is not None:
            raise InputError(f"{self._who}: {why}")
        both, again, alone = self._output(2), self._output(2), self._output(1)
        if not _alike(both, again, _SAME):
            raise InputError(
                f"{self._who}: gives another output for the same input each time; turn off what is "
                "random in evaluation, such as F.dropout without training=self.training, and what "
                "a call leaves behind for the next"
            )
        if not _alike(alone, both[:1], _TOLERANCE):
            raise InputError(
                f"{self._who}: an image's output depends on the other images of its batch, as of "
                "a batch normalization that ignores eval(); the bound is of each image alone"
            )
        return _digest(both)

    def _output(self, rows: int) -> Tensor:
        x_t = self._x_t[:rows].clone()
        inputs = [x_t, self._time[:rows].clone()]
        if self._checkpoint.num_classes:
            inputs.append(self._labels[:rows].clone())
        defaults = torch_defaults()
        with _watching_embeddings(self._checkpoint, inputs[1], self._who):
            try:
                output = calling(lambda: self._checkpoint.network(*inputs), self._who)
            except InputError as error:
                if error.__cause__ is None:
                    raise
                if is_out_of_memory(error.__cause__):
                    raise MemoryError from error
                raise InputError(
                    f"{error}; it was called with {self._shown(inputs)}{_on_gradients(error)}"
                ) from error
        if (call := changed_default(defaults)) is not None:
            raise InputError(
                f"{self._who}: a call leaves another default of torch behind ({call}), which "
                "would change the evaluation; set it back before it returns"
            )
        output = self._checked(output, x_t)
        if not torch.equal(x_t, self._x_t[:rows]):
            raise InputError(
                f"{self._who}: changes x_t, its input, in place; begin with x_t = x_t.clone() or "
                "write x = x + ... in place of x += ..."
            )
        return output.float()

    def _checked(self, output: object, x_t: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            part = _prediction_in(output, x_t.shape)
            returns = f"self.net(x_t, time){part}" if part else "the prediction alone"
            raise InputError(
                f"{self._who}: gives {described_value(output)}, not a tensor; name an adapter, a "
                f"module with self.net = Net() whose forward(self, x_t, time) returns {returns}"
            )
        batch, channels, *size = x_t.shape
        variance = self._checkpoint.variance
        shape = (batch, channels * (2 if variance.is_learned else 1), *size)
        if output.shape != shape:
            remedy = ""
            if output.shape == (batch, 2 * channels, *size):
                remedy = "; if half of it is a variance, choose `variance=learned_range` or learned"
            elif variance.is_learned and output.shape == x_t.shape:
                remedy = "; it has no variance: choose `variance=fixed_small` or fixed_large"
            raise InputError(
                f"{self._who}: gives {tuple(output.shape)} for x_t of {tuple(x_t.shape)}; with "
                f"`variance={variance}` it takes {shape}{remedy}"
            )
        if not output.is_floating_point():
            kind = str(output.dtype).removeprefix("torch.")
            raise InputError(f"{self._who}: gives {kind}, not floating-point numbers")
        if not bool(output.isfinite().all()):
            name = _random_attribute(self._checkpoint.network)
            why = (
                ""
                if name is None
                else (
                    f"; {name} is NaN, or random and in no file: register it as a buffer that is "
                    "saved, or draw it with generator=torch.Generator().manual_seed(SEED)"
                )
            )
            raise InputError(
                f"{self._who}: gives NaN or infinite numbers for normal noise as x_t and time "
                f"{self._time.tolist()}{why}"
            )
        return output

    def _shown(self, inputs: list[Tensor]) -> str:
        names = ("x_t", "time", "labels")
        shown = [
            f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in zip(names, inputs, strict=False)
        ]
        low, high = self._time.tolist()
        time = f"`time_input={self._checkpoint.time_input}`: {low:g} to {high:g}"
        return f"{', '.join(shown)} ({time})"


def _digest(output: Tensor) -> str:
    """Hexadecimal digits of an output, the same for outputs that differ by rounding.

    Of the root mean square r and of projections <output, z> / (r sqrt(n)) on normal noise z, two
    decimals count: rounding of another device, some 1e-6, changes a digit with a probability of
    about 1e-3.
    """
    flat = output.double().cpu().flatten()
    size = flat.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((_NUM_PROJECTIONS, len(flat)), generator=generator).double()
    numbers = [float(size.log2()), *(noise @ flat / (size * len(flat) ** 0.5)).tolist()]
    text = " ".join(f"{number + 0.0:.2f}" for number in numbers).replace("-0.00", "0.00")
    return hashlib.sha256(text.encode()).hexdigest()


def _random_attribute(network: nn.Module) -> str | None:
    """A NaN tensor that is neither parameter nor buffer, as `RandomNumbersAreNaN` leaves."""
    for prefix, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and bool(value.isnan().any()):
                return f"{prefix}.{name}" if prefix else name
    return None


@contextlib.contextmanager
def _watching_embeddings(checkpoint: Checkpoint, time: Tensor, who: str) -> Iterator[None]:
    """Inside, a row that an embedding does not have is an error on every device."""

    def watch(module: nn.Module, inputs: tuple[object, ...], named: Mapping[str, object]) -> None:
        assert isinstance(module, nn.Embedding)
        index = inputs[0] if inputs else named.get("input")
        if not isinstance(index, Tensor) or not index.numel():
            return
        if index.is_floating_point():
            raise InputError(
                f"{who}: an nn.Embedding is given floating-point numbers, and takes whole ones; "
                "with `time_input=index` time is t - 1, with one-based t, here it is "
                f"{checkpoint.time_input}"
            )
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
        raise InputError(f"{who}: {line}")

    # A subclass may take other inputs.
    embeddings = [m for m in checkpoint.network.modules() if type(m) is nn.Embedding]
    handles = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _prediction_in(output: object, shape: torch.Size) -> str:
    """What to write behind a call to take the prediction out of its result."""
    if isinstance(output, tuple | list):
        parts = [(f"[{index}]", value) for index, value in enumerate(output)]
    elif isinstance(output, Mapping):
        # the output of diffusers is a dict with attributes
        parts = [
            (f".{name}" if hasattr(output, str(name)) else f"[{name!r}]", value)
            for name, value in output.items()
        ]
    else:
        parts = [(f".{name}", value) for name, value in getattr(output, "__dict__", {}).items()]
    fitting = [
        part
        for part, value in parts
        if isinstance(value, Tensor) and value.shape[:1] + value.shape[2:] == shape[:1] + shape[2:]
    ]
    return fitting[0] if len(fitting) == 1 else ""


def _on_gradients(error: InputError) -> str:
    """The remedy for a network that differentiates, and cannot here; empty for others."""
    text = str(error.__cause__)
    if not any(word in text for word in ("require grad", "requires_grad", "nference tensor")):
        return ""
    return (
        "; networks are called in torch.inference_mode: take gradients with "
        "torch.inference_mode(False), torch.enable_grad() around them and clones of x_t and time"
    )


def _alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    scale = max(float(one.abs().max()), 1e-6)
    return bool((one - other).abs().max() <= tolerance * scale)


# ---- the signature of `forward`

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


def refused_call(network: nn.Module, *, has_classes: bool, wrapped: bool = False) -> str | None:
    """Why a network cannot be called with x_t, time and labels by position, and the remedy.

    Args:
        network: the network.
        has_classes: whether it is called with labels.
        wrapped: whether an argument of wrap_network says so, and not an attribute of the network.

    Returns:
        The rest of a line that begins with the network's name; None if it may be called.
    """
    if (parameters := signature_of(network)) is None:
        return None
    given = ["x_t", "time", *(["labels"] if has_classes else [])]
    named = [p for p in parameters.values() if p.kind in _POSITIONAL]
    shown = f"forward({', '.join(parameters)})"
    called = f"is called with {', '.join(given[:-1])} and {given[-1]}"
    source = "wrap_network's argument" if wrapped else "the network's attribute"
    try:
        inspect.Signature(list(parameters.values())).bind(*given)
    except TypeError:
        required = [p for p in parameters.values() if p.default is p.empty]
        more = [p.name for p in required if p not in named[: len(given)] and p.kind not in _MANY]
        if has_classes and len(named) < len(given):
            return (
                f"{called}, because of {source} num_classes, and its {shown} takes fewer by "
                f"position; without classes leave num_classes out, else {_ADAPTER}"
            )
        if not has_classes and len(more) == 1 and more == [p.name for p in named[2:3]]:
            return (
                f"{called}, and its {shown} needs {more[0]} too; where that is the class, give "
                f"{source} num_classes = 10 (and null_class = 10 where class 10 stands for none), "
                f"else {_ADAPTER}"
            )
        return f"{called}, and its {shown} takes something else; {_ADAPTER}"
    roles = [("time", 1, _TIMES), *([("labels", 2, LABELS)] if has_classes else [])]
    for role, place, names in roles:
        elsewhere = [p.name for i, p in enumerate(named) if i != place and p.name in names]
        if elsewhere and place < len(named) and named[place].name not in names:
            return (
                f"{called} in this order, and its {shown} has {named[place].name} where "
                f"{role} {'are' if role == 'labels' else 'is'} given and {elsewhere[0]} elsewhere; "
                f"{_ADAPTER}"
            )
    return None
