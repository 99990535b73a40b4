"""Weights of a file in a network of the user's own: all of them, as they are, and finite."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.state_dicts import StateDict
from ddpmbench.checkpoints.weights import is_plain, kind_of, some_weights
from ddpmbench.diffusion.model import ImageSize, sides_of
from ddpmbench.errors import InputError
from ddpmbench.user_code import calling

ADAPTER = (
    "name an adapter in its place, a module with self.net = Net() whose forward(self, x_t, time) "
    "calls it as it was trained (docs/checkpoints.md has one)"
)
"""What to do about a network that is called in another way."""

_TIMES = frozenset(
    {"t", "ts", "time", "times", "timestep", "timesteps", "step", "steps"}
    | {"sigma", "noise_level", "noise_levels", "noise_labels"}
)
_LABELS = frozenset(
    {"y", "c", "cls", "label", "labels", "class_label", "class_labels", "classes"}
    | {"class_id", "class_ids", "class_idx"}
)
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def refused_call(network: nn.Module, *, has_classes: bool, wrapped: bool = False) -> str | None:
    """Why a network cannot be called with x_t, time and labels in these places, and what to do.

    Args:
        network: the network.
        has_classes: whether it is called with labels.
        wrapped: whether arguments of wrap_network say so, and not attributes of the network.

    Returns:
        The rest of a line that begins with who it is; None if it may be called.
    """
    if (signature := _signature(network)) is None:
        return None
    given = ["x_t", "time", *(["labels"] if has_classes else [])]
    named = [p for p in signature.parameters.values() if p.kind in _BY_PLACE]
    shown = f"forward({', '.join(signature.parameters)})"
    called = f"is called with {_listed(given)}"
    try:
        signature.bind(*given)
    except TypeError:
        required = [p for p in signature.parameters.values() if p.default is p.empty]
        more = [p.name for p in required if p not in named[: len(given)] and p.kind not in _MANY]
        if has_classes and len(named) < len(given):
            return (
                f"{called}, because of {_of(wrapped)} num_classes, and its {shown} takes fewer by "
                f"their place; without classes leave num_classes out, else {ADAPTER}"
            )
        if not has_classes and len(more) == 1 and more == [p.name for p in named[2:3]]:
            return (
                f"{called}, and its {shown} needs {more[0]} too; where that is the class, say how "
                f"many there are by {_of(wrapped)} num_classes = 10 (and null_class = 10 where "
                f"class 10 stands for none), else {ADAPTER}"
            )
        return f"{called}, and its {shown} takes something else; {ADAPTER}"
    roles = [("time", 1, _TIMES), *([("labels", 2, _LABELS)] if has_classes else [])]
    for role, place, names in roles:
        elsewhere = [p.name for i, p in enumerate(named) if i != place and p.name in names]
        if elsewhere and place < len(named) and named[place].name not in names:
            return (
                f"{called} in this order, and its {shown} has {named[place].name} where "
                f"{role} {'are' if role == 'labels' else 'is'} given and {elsewhere[0]} elsewhere; "
                f"{ADAPTER}"
            )
    return None


def _of(wrapped: bool) -> str:
    return "wrap_network's argument" if wrapped else "the network's attribute"


def unused_class(network: nn.Module) -> str | None:
    """A parameter of its forward that takes classes and may be left out; None if there is none."""
    signature = _signature(network)
    names = () if signature is None else signature.parameters
    return next((name for name in names if name in _LABELS), None)


def _signature(network: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(network.forward)
    except (TypeError, ValueError):
        return None


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


_SIZES = (32, 28, 64)
"""Of images that a network may take which does not say."""

Output = Callable[[nn.Module, Tensor], Tensor]
"""What a network gives for x_t (B, C, H, W), at steps of its own."""


@dataclasses.dataclass(frozen=True, eq=False)
class BuiltTwice:
    """A network, and the same built with other random numbers; their weights are the same.

    Attributes:
        network: one.
        twin: the other.
        option: what `--network` says.
    """

    network: nn.Module
    twin: nn.Module
    option: str

    def notes(
        self, channels: int | None, size: ImageSize | None, output: Output
    ) -> tuple[str, ...]:
        """What is to be noted of tensors that are neither parameters nor buffers.

        They may be what a loss was recorded in, and are looked at only if they differ: then both
        networks are called.

        Args:
            channels: of an image; None if that is not known.
            size: height and width of one, likewise.
            output: calls a network.

        Raises:
            InputError: they differ, and so do the outputs.
        """
        attributes = (_attributes(network) for network in (self.network, self.twin))
        if (name := first_difference(*attributes)) is None:
            return ()
        for side in _SIZES if size is None else (size,):
            shape = (2, channels or self._channels, *sides_of(side))
            x_t = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            try:
                one, other = (self._called(net, x_t, output) for net in (self.network, self.twin))
            except InputError:  # images of this size may not be for it; the first call says more
                continue
            if torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True):
                return ()
            raise InputError(
                f"--network {self.option}: {name} is another each time the network is built, and "
                "its output with it, and so it is not what was trained; register it as a buffer "
                "that is in the file of weights, or build it the same every time"
            )
        return (
            f"{name} is another each time the network is built, and no image could be tried to see "
            "whether the output is, too; name image_channels and image_size as its attributes",
        )

    @property
    def _channels(self) -> int:
        """Those that the first convolution takes."""
        kernels = (weight.shape[1] for weight in self.network.parameters() if weight.ndim == 4)
        return next(kernels, 1)

    def _called(self, network: nn.Module, x_t: Tensor, output: Output) -> Tensor:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            return calling(lambda: output(network, x_t.clone()), f"--network {self.option}")


Named = Iterable[tuple[str, Tensor]]


def first_difference(one: Named, other: Named) -> str | None:
    """The first tensor that is not the same in both, by their names; None if all are."""
    others = dict(other)
    for name, tensor in one:
        twin = others.get(name)
        if twin is None or twin.shape != tensor.shape or twin.dtype != tensor.dtype:
            return name
        is_same = (tensor == twin) | ((tensor != tensor) & (twin != twin))
        if not bool(is_same.all()):
            return name
    return None


def _attributes(network: nn.Module) -> Named:
    """Tensors that are neither parameters nor buffers."""
    for prefix, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}" if prefix else name, value


BATCH_COUNT = "num_batches_tracked"
"""The buffer of a batch normalization whose value changes nothing in evaluation."""


def load_own(network: nn.Module, state_dict: StateDict, path: Path, option: str) -> None:
    """Put weights into the network, whose own code may have its say in it.

    Args:
        network: receives the weights, as float32; may be on the meta device.
        state_dict: a tensor for every parameter and buffer of the network, and no other but
            tables of a schedule.
        path: the file to name in an error.
        option: what `--network` says.

    Raises:
        InputError: one is missing, left over, of another shape, or of another kind of number.
    """
    tensors = {n: value for n, value in state_dict.weights.items() if isinstance(value, Tensor)}
    expected = network.state_dict()
    # Tables of the schedule beside the weights are read where they are needed.
    tables = ScheduleTables.among({n: t for n, t in tensors.items() if n not in expected})
    weights = {name: tensor for name, tensor in tensors.items() if name not in tables.names}
    weights |= _batch_counts(weights, expected)
    for name, wanted in expected.items():
        # what has another shape is named by torch, and may declare more than there is memory for
        if (
            isinstance(wanted, Tensor)  # a module may keep anything as its extra state
            and name in weights
            and weights[name].shape == wanted.shape
        ):
            weights[name] = _as_wanted(weights[name], wanted, f"{path}: {name}", option)
    # What was made in torch.inference_mode cannot be written to.
    assign = any(p.is_meta or p.is_inference() for p in network.parameters())
    try:
        missing, unexpected = calling(
            lambda: network.load_state_dict(weights, strict=False, assign=assign),
            f"--network {option}: {path} does not fit",
        )
    except InputError as error:
        # torch names every shape in one long text
        if (what := _other_shapes(weights, expected)) is None:
            raise
        raise InputError(f"--network {option}: {path} does not fit: {what}") from error
    if missing or unexpected:
        sides = (("missing", missing), ("left over", unexpected))
        what = "; ".join(f"{some_weights(names)} {side}" for side, names in sides if names)
        raise InputError(f"{path}: {what}; these are not the weights of --network {option}")


def _batch_counts(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """In place of counts of batches that are averages, casts or of shape (1,)."""
    return {
        name: torch.zeros(wanted.shape, dtype=wanted.dtype)
        for name, wanted in expected.items()
        if name.endswith(BATCH_COUNT)
        and (count := weights.get(name)) is not None
        and count.numel() == wanted.numel() == 1
        and (count.is_floating_point() or count.shape != wanted.shape)
    }


def _other_shapes(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """The first weight of another shape, and how many there are; None if there is none."""
    names = [
        name
        for name, wanted in expected.items()
        if name in weights and isinstance(wanted, Tensor) and weights[name].shape != wanted.shape
    ]
    if not names:
        return None
    found, wanted = list(weights[names[0]].shape), list(expected[names[0]].shape)
    more = f" (and {len(names) - 1} more are of other sizes)" if len(names) > 1 else ""
    return f"{names[0]} is {found}, the network takes {wanted}{more}"


def check_finite(network: nn.Module, source: object) -> None:
    """Refuse weights and buffers that are NaN or infinite; a mask's may be -inf.

    Args:
        network: with its weights.
        source: the file or the code that they are from, to name in an error.

    Raises:
        InputError: naming the first of them.
    """
    parameters = dict(network.named_parameters())
    for name, tensor in {**network.state_dict(), **parameters}.items():
        if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor) or tensor.is_meta:
            continue
        finite = tensor.detach().isfinite()
        if name not in parameters:
            finite |= tensor == -torch.inf
        if not bool(finite.all()):
            raise InputError(f"{source}: {name} holds NaN or infinite weights")


def _as_wanted(tensor: Tensor, wanted: Tensor, named: str, option: str) -> Tensor:
    """A weight as the network computes with it; of another kind of number it is not one.

    Copying would make floats of integers, and drop imaginary parts, without a word.
    """
    is_float = wanted.is_floating_point()
    if tensor.is_floating_point() != is_float or tensor.is_complex() != wanted.is_complex():
        raise InputError(
            f"{named} is {kind_of(tensor)}, and --network {option} has {kind_of(wanted)} there; "
            f"save it as {kind_of(wanted)}"
        )
    if is_float and not is_plain(tensor):
        raise InputError(
            f"{named} is no plain floating-point tensor ({kind_of(tensor)}); save the weights as "
            "float32"
        )
    return tensor.float() if is_float else tensor
