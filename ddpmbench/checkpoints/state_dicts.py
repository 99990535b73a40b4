"""The state dict of a network in a training state, averaged or not.

Training code wraps a network's weights: in a dict beside the optimizer, under prefixes of
Lightning, DataParallel or torch.compile, and again if they are also averaged. Weights are located
by known names of the network, never by trial.
"""

import dataclasses
import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.weights import (
    Container,
    FileError,
    containers,
    numbers_held,
    rounding_notes,
    tensors_in,
)
from ddpmbench.errors import InputError, listed

PESSER_NAMES = ("cifar10", "lsun_bedroom", "lsun_cat", "lsun_church")
"""Models that pesser/pytorch_diffusion publishes."""
_PUBLISHED = rf"diffusion_({'|'.join(PESSER_NAMES)})_model"
# Matched with FOLDER/STEM. Only the projects' spellings count: any name may begin with ema_.
_EMA_FILE = re.compile(
    rf".*/(ema_[0-9.]+_\d{{2,}}|ema_({'|'.join(PESSER_NAMES)})|ema_{_PUBLISHED})"
    rf"|ema_{_PUBLISHED}/model-\d+"
)
_RAW_FILE = re.compile(rf".*/(model\d{{2,}}|{_PUBLISHED})|diffusion_\w+_model/model-\d+")


def kind_in_name(path: Path) -> str | None:
    """The kind of weights, "ema" or "raw", stated by the name of a bare state dict, if any."""
    name = f"{path.parent.name}/{path.stem}"
    return "ema" if _EMA_FILE.fullmatch(name) else "raw" if _RAW_FILE.fullmatch(name) else None


_AVERAGED = re.compile(
    r"(?i:(?<![a-z])(emas?|averaged?|averages|(?<!exp_)avg|swa|polyak|shadow)(?![a-z]))"
    r"|[a-z]EMA(?![A-Za-z])|(?<![A-Za-z])(ema[A-Z]|EMA[A-Z][a-z])"
)
_RAW = re.compile(r"(?<![a-z])(online_model\.|current_model_state(?![a-z]))")
_WITHOUT_NAMES = (("shadow_params",), ("collected_params",))
# With Lightning's WeightAveraging, `state_dict` holds the average and these the rest
_SWAPPED = {"state_dict", "current_model_state", "averaging_state"}
_MOMENTS = re.compile(r"(max_)?exp_avg(_sq)?|exp_inf|momentum(_buffer)?|square_avg|grad_avg")


@dataclasses.dataclass(frozen=True, eq=False)
class StateDict:
    """The weights of one network, under the network's names.

    Attributes:
        weights: items by name, not necessarily tensors.
        kind: "ema" if known to be averaged over the training, "raw" if known to be last; None if
            unknown.
        where: keys and prefix that lead to them; empty if they are the whole file.
        alone: whether the file holds no other weights of such a network.
        beside: the other tensors of the same dict, under the dict's names.
        not_read: locations of other weights in the file.
        added: a prefix of the names above that the file's names lack.
    """

    weights: dict[str, object]
    kind: str | None = None
    where: str = ""
    alone: bool = True
    beside: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    not_read: tuple[str, ...] = ()
    added: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the choice of weights, a line each."""
        notes = []
        if self.where:
            kind = {
                "ema": f"EMA ({self.where})",
                "raw": f"raw ({self.where})",
                None: f"those under {self.where} in the file",
            }
            notes.append(f"weights: {kind[self.kind]}")
        if self.added:
            notes.append(
                f"the network's names begin with {self.added}, those of the file do not; they are "
                "the same without it"
            )
        if self.not_read:
            notes.append(f"other weights in the file are not read: {listed(self.not_read)}")
        return (*notes, *rounding_notes(self.weights))


def find_state(
    content: Mapping[str, object],
    *,
    path: Path,
    known: Iterable[Sequence[str]],
    weights: str | None = None,
) -> StateDict | None:
    """The weights to read from a file; None if it holds none of a known network.

    Args:
        content: from `read_state`.
        path: the file to name in an error.
        known: groups of names that identify a network; all names of a group must be present under
            one prefix.
        weights: "ema" or "raw"; None takes the averaged ones if there are any.

    Raises:
        InputError: several qualify, or none of the requested kind; or there are averaged weights
            that cannot be read, and no kind was requested.
    """
    places = list(containers(content, apart=_AVERAGED))
    every = [state for names in known for state in _under(places, names)]
    states = _distinct(every)
    if not states:
        return None
    if len(states) == 1 and states[0].kind is None and not states[0].where:
        states = [dataclasses.replace(states[0], kind=kind_in_name(path))]
    averaged = [state for state in states if state.kind == "ema"]
    others = [state for state in states if state.kind != "ema"]
    if averaged:
        others = [dataclasses.replace(state, kind="raw") for state in others]
    rest = _rest(places, every)
    unread = next((where for where, is_average in rest.items() if is_average), None)
    if weights != "raw" and not averaged and unread is not None:
        raise FileError(
            path,
            f"its averaged weights ({unread}) are no state dict with the network's names; pass "
            "`weights=raw` for its last ones, or save the averaged ones as a state dict",
        )
    wanted = weights or ("ema" if averaged else "raw")
    choice = averaged if wanted == "ema" else others
    if not choice:
        has = "averaged weights alone" if wanted == "raw" else "no weights known to be averaged"
        raise FileError(path, f"holds {has}{_shown(states)}; leave out `weights={wanted}`")
    if len(choice) > 1:
        raise FileError(
            path,
            f"holds several sets of {'averaged ' if wanted == 'ema' else ''}weights"
            f"{_shown(choice)}; save the one you mean as a file of its own: "
            "torch.save(STATE_DICT, PATH)",
        )
    kind = choice[0].kind or weights
    return dataclasses.replace(choice[0], kind=kind, alone=len(states) == 1, not_read=tuple(rest))


def _under(places: list[Container], names: Sequence[str]) -> Iterator[StateDict]:
    """Every state dict in a file that has all the names under one prefix."""
    lightning = [p.keys for p in places if set(p.items) >= _SWAPPED]
    for place in places:
        if place.is_list or place.optimizer is not None:
            continue
        averaged = place.keys[-1:] == ("state_dict",) and place.keys[:-1] in lightning
        for name in place.items:
            if name != names[0] and not name.endswith(f".{names[0]}"):
                continue
            prefix = name.removesuffix(names[0])
            if all(isinstance(place.items.get(prefix + other), Tensor) for other in names):
                state = _state(place.items, prefix, place.keys)
                yield dataclasses.replace(state, kind="ema") if averaged else state
                yield from _flattened(place.items, prefix, place.keys)


def _state(container: Mapping[str, object], prefix: str, keys: tuple[str, ...]) -> StateDict:
    where = "/".join((*keys, prefix) if prefix else keys)
    last = bool(_RAW.search(where))
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
        kind="raw" if last else "ema" if averaged else None,
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
    """The average in latent-diffusion's LitEma: buffers named like weights, without dots."""
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


def _distinct(states: list[StateDict]) -> list[StateDict]:
    """The state dicts, without copies of earlier ones."""
    result: list[StateDict] = []
    for state in states:
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
        isinstance(a, Tensor) and isinstance(b, Tensor) and _same_numbers(a, b) for a, b in pairs
    )


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    # a shape may declare more numbers than the file holds, too many to compare
    whole = all(t.numel() <= (numbers_held(t) or 0) for t in (a, b))
    return whole and a.shape == b.shape and torch.equal(a, b)


def _rest(places: list[Container], read: list[StateDict]) -> dict[str, bool]:
    """Locations of other weights in the file, and whether they are averaged."""
    known: dict[int, list[str]] = {}
    for state in read:
        for value in state.weights.values():
            known.setdefault(id(value), []).append(state.where)
    result: dict[str, bool] = {}
    for place in places:
        tensors = {n: v for n, v in place.items.items() if isinstance(v, Tensor) and v.numel() > 1}
        tables = ScheduleTables.within(tensors).names
        mixed = not place.keys or any(id(value) in known for value in tensors.values())
        for name, tensor in tensors.items():
            path, read_at = "/".join((*place.keys, name)), tuple(known.get(id(tensor), ()))
            inside = "/".join((*place.keys, name)[place.optimizer or 0 :])
            averaged = bool(_AVERAGED.search(inside)) or place.keys[-1:] in _WITHOUT_NAMES
            # an average that shares a tensor with these weights is still an average
            if name in tables or (read_at and (not averaged or path.startswith(read_at))):
                continue
            is_weight = place.optimizer is None and tensor.is_floating_point() and tensor.ndim > 1
            if _MOMENTS.fullmatch(name) or not (averaged or is_weight):
                continue
            head = name.partition(".")[0] if mixed and not place.is_list else ""
            where = "/".join((*place.keys, head) if head else place.keys)
            result[where] = result.get(where, False) or averaged
    return result


def _shown(states: list[StateDict]) -> str:
    names = [state.where for state in states if state.where]
    return f" ({listed(names)})" if names else ""


def network_digest(network: nn.Module, who: str) -> str:
    """SHA-256, in hexadecimal digits, of the names and numbers of a network's weights.

    A TorchScript program is hashed as a whole, since a frozen one has its weights as constants.

    Raises:
        InputError: a weight is not initialized yet.
    """
    digest = hashlib.sha256()
    if isinstance(network, torch.jit.ScriptModule):
        program = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
            torch.jit.save(network, program)
        digest.update(program.getvalue())
        return digest.hexdigest()
    for name, tensor in sorted(tensors_in(network.state_dict()), key=lambda item: item[0]):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise InputError(f"{who}: weight {name} has no numbers yet; load the weights first")
        digest.update(name.encode())
        dense = tensor.detach().cpu()
        if dense.is_quantized:
            dense = dense.int_repr()
        flat = (dense.to_dense() if dense.layout != torch.strided else dense).contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
