"""How a network of the user's own wants to be called, by the parameters of its forward."""

import inspect
from collections.abc import Sequence

from torch import nn

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
