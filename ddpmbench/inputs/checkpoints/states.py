"""From what a weights file holds to one state dict: out of its wrapping, averaged or not.

Training code wraps a network's weights: in a dict beside the optimizer, under the prefixes of
Lightning, DataParallel or torch.compile, twice where they are also averaged. Where a network's
weights are is told by names that it is known to have, never by what happens to fit.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints import file_names
from ddpmbench.inputs.checkpoints.schedule_tables import ScheduleTables

_DEPTH = 4
_AVERAGED = re.compile(
    r"(?i:(?<![a-z])(ema|averaged|shadow)(?![a-z]))|[a-z]EMA(?![A-Za-z])|(?<![A-Za-z])ema[A-Z]"
)
_ONLINE = re.compile(r"(?<![a-z])online_model\.")
_WITHOUT_NAMES = ("shadow_params", "collected_params")


@dataclasses.dataclass(frozen=True, eq=False)
class StateDict:
    """The weights of one network, named as the network names them.

    Attributes:
        weights: what is there by name, which may be no tensor.
        kind: "ema" where they are known to be averaged over the training, "raw" where they are
            known to be its last; None if the file does not say.
        where: keys and prefix that lead to them; empty where they are the file itself.
        alone: whether the file holds no other weights of such a network.
        beside: the other tensors of the dict that they are in, under the names they have there.
    """

    weights: dict[str, object]
    kind: str | None = None
    where: str = ""
    alone: bool = True
    beside: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth saying of them, a line each."""
        notes = []
        if self.where:
            kind = {"ema": f"EMA ({self.where})", "raw": f"raw ({self.where})", None: self.where}
            notes.append(f"weights: {kind[self.kind]}")
        tensors = [value for value in self.weights.values() if isinstance(value, Tensor)]
        small = {t.dtype for t in tensors if t.is_floating_point() and t.element_size() < 4}
        for dtype in sorted(map(str, small)):
            notes.append(
                f"weights are {dtype.removeprefix('torch.')}, rounded when they were saved"
            )
        return tuple(notes)


def find_state(
    content: Mapping[str, object],
    *,
    path: Path,
    known: Iterable[Sequence[str]],
    weights: str | None = None,
) -> StateDict | None:
    """The weights in a file that are to be read; None if there are none of a known network.

    Args:
        content: what `read_state` gave.
        path: the file to name in an error.
        known: names that tell a network, one sequence for each way to tell; all of a sequence
            must be there under one prefix.
        weights: "ema" or "raw" of those; None takes the averaged ones where there are any.

    Raises:
        InputError: there are several, and nothing says which are meant; or not those asked for;
            or averaged ones that cannot be read, while nothing was asked for.
    """
    found = _distinct([state for names in known for state in _under(content, names)])
    if not found:
        return None
    if len(found) == 1 and found[0].kind is None and not found[0].where:
        found = [dataclasses.replace(found[0], kind=file_names.kind(path))]
    averaged = [state for state in found if state.kind == "ema"]
    others = [state for state in found if state.kind != "ema"]
    if averaged:
        others = [dataclasses.replace(state, kind="raw") for state in others]
    wanted = weights or ("ema" if averaged else "raw")
    if weights is None and not averaged and (where := _unread_average(content, others)):
        raise InputError(
            f"{path}: its averaged weights ({where}) are no state dict with the network's names; "
            "pass --weights raw for its last ones, or save the averaged ones as a state dict"
        )
    choice = averaged if wanted == "ema" else others
    if not choice:
        raise InputError(f"--weights {wanted}: {path} {_lacks(wanted, path, found)}")
    if len(choice) > 1:
        raise InputError(
            f"{path}: holds several sets of {'averaged ' if wanted == 'ema' else ''}weights"
            f"{_shown(choice)}; save the one you mean as a file of its own: "
            "torch.save(STATE_DICT, PATH)"
        )
    kind = choice[0].kind or weights
    return dataclasses.replace(choice[0], kind=kind, alone=len(found) == 1)


def _lacks(wanted: str, path: Path, found: list[StateDict]) -> str:
    """Why a file has no weights of the kind wanted, and what to do."""
    has = "averaged weights alone" if wanted == "raw" else "no weights known to be averaged"
    other = file_names.other_weights(path)
    remedy = f"the others are in {other}" if other is not None else "leave --weights out"
    return f"holds {has}{_shown(found)}; {remedy}"


def _under(content: Mapping[str, object], names: Sequence[str]) -> Iterator[StateDict]:
    """Everything in a file that has all of the names under one prefix."""
    for keys, container in _containers(content):
        first = names[0]
        for name in container:
            if name != first and not name.endswith(f".{first}"):
                continue
            prefix = name.removesuffix(first)
            if all(isinstance(container.get(prefix + other), Tensor) for other in names):
                yield _state(container, prefix, keys)
                yield from _flattened(container, prefix, keys)


def _containers(
    content: Mapping[str, object], keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, object]]]:
    """Every dict in a file with the keys that lead to it, but for those of optimizers."""
    yield keys, content
    for name, value in content.items():
        if isinstance(value, Mapping) and "param_groups" not in value and len(keys) < _DEPTH:
            inner = {str(key): item for key, item in value.items()}
            yield from _containers(inner, (*keys, str(name)))


def _state(container: Mapping[str, object], prefix: str, keys: tuple[str, ...]) -> StateDict:
    where = "/".join((*keys, prefix) if prefix else keys)
    online = bool(_ONLINE.search(prefix))
    averaged = bool(_AVERAGED.search(where)) or (
        # torch.optim.swa_utils.AveragedModel
        prefix.endswith("module.") and f"{prefix.removesuffix('module.')}n_averaged" in container
    )
    return StateDict(
        weights={
            name.removeprefix(prefix): value
            for name, value in container.items()
            if name.startswith(prefix)
        },
        kind="raw" if online else "ema" if averaged else None,
        where=where,
        beside={
            name: value
            for name, value in container.items()
            if prefix and isinstance(value, Tensor) and not name.startswith(prefix)
        },
    )


def _flattened(
    container: Mapping[str, object], prefix: str, keys: tuple[str, ...]
) -> Iterator[StateDict]:
    """The average that latent-diffusion's LitEma keeps of weights: buffers without the dots."""
    raw = _state(container, prefix, keys)
    parts = prefix.split(".")[:-1]
    for skipped in range(len(parts) + 1):
        inner = "".join(parts[skipped:])
        theirs = {name: f"model_ema.{inner}{name.replace('.', '')}" for name in raw.weights}
        if len(set(theirs.values())) == len(theirs) and set(theirs.values()) <= set(container):
            weights = {name: container[flat] for name, flat in theirs.items()}
            where = "/".join((*keys, "model_ema."))
            yield dataclasses.replace(raw, weights=weights, kind="ema", where=where)
            return


def _distinct(found: list[StateDict]) -> list[StateDict]:
    """The same without those that hold what one before them holds, as copies or twice found."""
    result: list[StateDict] = []
    for state in found:
        if not any(_equal(state, other) for other in result):
            result.append(state)
    return result


def _equal(one: StateDict, other: StateDict) -> bool:
    if one.where == other.where:
        return True
    if (one.kind == "ema") != (other.kind == "ema") or one.weights.keys() != other.weights.keys():
        return False
    pairs = ((value, other.weights[name]) for name, value in one.weights.items())
    return all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
        for a, b in pairs
    )


def _unread_average(content: Mapping[str, object], read: list[StateDict]) -> str:
    """Where the file holds averaged weights that are none of those read; empty if nowhere."""
    whole = any(not state.where for state in read)
    inside = tuple(w if w.endswith(".") else f"{w}/" for w in (s.where for s in read) if w)
    for keys, container in _containers(content):
        for name, value in container.items():
            where = "/".join((*keys, name))
            if where.startswith(inside) or (whole and not keys and isinstance(value, Tensor)):
                continue  # a weight of what is read, whatever it is called
            many = isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value)
            if many and (name in _WITHOUT_NAMES or _AVERAGED.search(where)):
                return where
            is_weight = isinstance(value, Tensor) and value.numel() > 1
            if is_weight and _AVERAGED.search(where) and not _is_table(name, value):
                return "/".join((*keys, name.partition(".")[0]))
    return ""


def _is_table(name: str, value: object) -> bool:
    """Whether it is of a schedule, which is not averaged whatever keeps it."""
    return isinstance(value, Tensor) and bool(ScheduleTables.among({name: value}).names)


def _shown(states: list[StateDict]) -> str:
    names = [state.where for state in states if state.where]
    return f" ({', '.join(names)})" if names else ""
