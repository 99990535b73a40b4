"""The family of yang-song/score_sde_pytorch: a training state with numbered modules."""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpmbench.checkpoints.flags import CONFIGURATIONS, EXAMPLE, Config, parse_config
from ddpmbench.checkpoints.network_weights import Renames, build_unet, only_tensors, shape_of
from ddpmbench.checkpoints.settings import CheckpointFile, Family, MissingSettingsError
from ddpmbench.checkpoints.weights import OWN, FileError, naming
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Prediction, Variance
from ddpmbench.unet.unet import Resampling, UNetConfig

_NAMES = (
    ("all_modules.3.GroupNorm_0.weight", "all_modules.3.Conv_0.weight"),
    ("all_modules.0.W", "all_modules.1.weight", "all_modules.3.weight"),
    ("all_modules.1.GroupNorm_0.weight", "all_modules.0.weight"),
)
"""With sinusoids, Fourier features or no time input."""
_NUMBERED = re.compile(r"all_modules\.(\d{1,4})\.(.+)")
_FOURIER = "all_modules.0.W"


def read_score_sde(file: CheckpointFile) -> Checkpoint:
    """The checkpoint in a state dict of the project's `ddpm`, or `ncsnpp` without filters.

    Images in [0, 1] and their noise are treated as images in [-1, 1] and twice the noise, like the
    network does. An output that is divided by the noise level is used without the division, as
    -eps.

    Raises:
        MissingSettingsError: `model_flags` is not given.
        InputError: the flags contradict the weights, or our U-Net cannot express the network.

    Source: Song et al. 2021 and the project's models and configurations.
    """
    path, model_flags = file.path, file.settings.model_flags
    weights = file.weights
    if (part := _not_ours(weights)) is not None:
        raise FileError(path, f"a network of score_sde with {part}, which is not read; {OWN}")
    (num_scales,) = shape_of(weights, "sigmas", 1, source=path)
    if num_scales < 2:
        raise FileError(path, f"its sigmas are one noise level, and a process has more; {OWN}")
    sigmas = weights.pop("sigmas")
    if model_flags is None or not model_flags.strip():
        raise MissingSettingsError(
            f"{path}: a network of score_sde ({num_scales:,} noise levels) of an unknown process",
            {"model_flags": EXAMPLE},
            path=path,
            weights=weights,
            hint=f"or the name of its configuration: {', '.join(CONFIGURATIONS)}",
        )
    flags, notes = parse_config(model_flags)
    config = network_config(weights, path, flags)
    with naming(path):
        schedule, time_input = flags.process(sigmas, path)
    factor = 1.0
    prediction = Prediction.EPSILON
    if flags.sde == "vesde":
        factor = -1.0 if flags.scale_by_sigma else 1.0 if flags.centered else 0.5
        prediction = Prediction.EPSILON if flags.scale_by_sigma else Prediction.SCORE
    if not flags.centered:
        notes = (*notes, "images in [0, 1] and their noise are doubled to those of [-1, 1]")
    network = build_unet(
        config,
        _as_convolutions(weights, config, factor, path),
        _renames(config),
        parts=("NIN_0", "NIN_1", "NIN_2"),
        source=path,
    )
    return Checkpoint(
        network=network,
        schedule=schedule,
        prediction=prediction,
        variance=Variance.FIXED_LARGE,
        clip=False,
        time_input=time_input,
        channels=config.in_channels,
        image_size=flags.image_size,
        size_multiple=config.size_multiple,
        notes=(*notes, "variance fixed_large and no clipping: as the project samples"),
    )


# ---- the network


def _kinds(weights: Mapping[str, Tensor]) -> list[str]:
    """The kind of each module, by number; "pool" if it has no weights."""
    suffixes: dict[int, set[str]] = {}
    for name in weights:
        if (match := _NUMBERED.fullmatch(name)) is not None:
            suffixes.setdefault(int(match[1]), set()).add(match[2])
    return [_kind(weights, n, suffixes.get(n)) for n in range(max(suffixes, default=-1) + 1)]


def _kind(weights: Mapping[str, Tensor], number: int, names: set[str] | None) -> str:
    if names is None:
        return "pool"
    if "NIN_3.W" in names:
        return "attention"
    if "GroupNorm_1.weight" not in names:
        return "conv" if "Conv_0.weight" in names else "layer"
    shape = weights.get(f"all_modules.{number}.Conv_0.weight", torch.empty(0, 1)).shape
    same = "Conv_2.weight" in names and shape[0] == shape[1]
    return "projected" if same else "block"


def _not_ours(weights: Mapping[str, Tensor]) -> str | None:
    """A part of the network that our U-Net lacks; None if there is none."""
    if _FOURIER in weights:
        return "Fourier features of the noise level"
    if any(".Conv2d_0." in name for name in weights):
        return "filters that resample (FIR)"
    if getattr(weights.get("all_modules.0.weight"), "ndim", 2) != 2:
        return "no time input"
    kinds = _kinds(weights)
    if kinds.count("layer") != 5 or kinds[:3] != ["layer"] * 3 or kinds[-2:] != ["layer"] * 2:
        return "a pyramid of inputs or outputs (progressive)"
    return None


def network_config(weights: Mapping[str, Tensor], path: Path, flags: Config) -> UNetConfig:
    """The network, from its modules and the configuration.

    Raises:
        InputError: a required weight is missing, the modules are in another order, or the
            configuration has other blocks.
    """
    shape = functools.partial(shape_of, weights, source=path)
    kinds = _kinds(weights)
    steps = [number for number, kind in enumerate(kinds) if kind in ("conv", "pool", "projected")]
    depth = len(steps) // 2 + 1
    resampling: Resampling = "conv"
    if steps and kinds[steps[0]] != "conv":
        resampling = "pool" if kinds[steps[0]] == "pool" else "projected"
    _refuse_other_blocks(flags, path, resamples=resampling == "projected")
    starts = [3, *(step + 1 for step in steps[: depth - 1])]
    end = steps[0] if steps else len(kinds)
    blocks = kinds[3:end].count("block")
    # With one resolution the blocks include the middle and the upward path.
    num_blocks = blocks if steps else (blocks - 3) // 2
    with naming(path):
        config = UNetConfig(
            in_channels=shape("all_modules.2.weight", 4)[1],
            out_channels=shape(f"all_modules.{len(kinds) - 1}.weight", 4)[0],
            model_channels=shape("all_modules.0.weight", 2)[1],
            channels=tuple(shape(f"all_modules.{n}.Conv_0.weight", 4)[0] for n in starts),
            num_blocks=num_blocks,
            attention=tuple(kinds[n + 1] == "attention" for n in starts),
            resampling=resampling,
            least_group=4 if flags.name == "ncsnpp" else 0,
            attend_once=True,
            rescale_sums=flags.skip_rescale,
        )
    if shape("all_modules.2.weight", 4)[0] != config.channels[0]:
        raise FileError(path, f"its first resolution widens the first convolution; {OWN}")
    if [kind for _, kind in _modules(config)] != kinds:
        raise FileError(path, f"its modules are in no order of score_sde's networks; {OWN}")
    return config


def _refuse_other_blocks(flags: Config, path: Path, *, resamples: bool) -> None:
    """Refuse other blocks: only "ncsnpp" has blocks that resample (BigGAN's), and not always."""
    if resamples and flags.name != "ncsnpp":
        raise FileError(
            path,
            f"`model_flags`: --config.model.name={flags.name}, but its blocks are of ncsnpp; pass "
            "the configuration that it was trained with",
        )
    if resamples and flags.fir is not False:
        raise FileError(
            path, f"its blocks resample: pass --config.model.fir=False in `model_flags`, or {OWN}"
        )
    if resamples != flags.is_biggan:
        given, other = ("biggan", "ddpm") if flags.is_biggan else ("ddpm", "biggan")
        raise FileError(
            path,
            f"`model_flags`: --config.model.resblock_type={given} of ncsnpp, but its blocks are "
            f"{other}; pass the configuration that it was trained with",
        )


def _modules(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """The modules in the project's order: our name, and the kind."""
    depth = len(config.channels)
    yield from (("time_1", "layer"), ("time_2", "layer"), ("conv_in", "layer"))
    for level, attends in enumerate(config.attention):
        for block in range(config.num_blocks):
            yield f"down.{level}.blocks.{block}", "block"
            if attends:
                yield f"down.{level}.attentions.{block}", "attention"
        if level < depth - 1:
            yield f"down.{level}.resample", config.resampling
    yield from (("middle.block_1", "block"), ("middle.attention", "attention"))
    yield "middle.block_2", "block"
    for level, attends in enumerate(reversed(config.attention)):
        for block in range(config.num_blocks + 1):
            yield f"up.{level}.blocks.{block}", "block"
        if attends:
            yield f"up.{level}.attentions.0", "attention"
        if level < depth - 1:
            yield f"up.{level}.resample", config.resampling
    yield from (("norm_out", "layer"), ("conv_out", "layer"))


def _renames(config: UNetConfig) -> Renames:
    """Our names -> theirs."""
    places = {name: f"all_modules.{n}." for n, (name, _) in enumerate(_modules(config))}
    place = re.compile(rf"^({'|'.join(map(re.escape, places))})\.")
    # blocks of the project's residual networks project with a convolution
    shortcut = ".Conv_2." if config.resampling == "projected" else ".NIN_0."
    return (
        (r"(attentions?(\.\d+)?)\.norm\.", r"\1.GroupNorm_0."),
        (r"(attentions?(\.\d+)?)\.out\.", r"\1.NIN_3."),
        (r"\.resample\.conv\.", ".resample.Conv_0."),
        (place.pattern, lambda match: places[match[1]]),
        (r"\.norm_1\.", ".GroupNorm_0."),
        (r"\.norm_2\.", ".GroupNorm_1."),
        (r"\.conv_1\.", ".Conv_0."),
        (r"\.conv_2\.", ".Conv_1."),
        (r"\.time\.", ".Dense_0."),
        (r"\.shortcut\.", shortcut),
    )


def _as_convolutions(
    weights: Mapping[str, Tensor], config: UNetConfig, factor: float, path: Path
) -> dict[str, Tensor]:
    """The weights with matrices as 1x1 convolutions, and the output times a factor."""
    last = f"all_modules.{sum(1 for _ in _modules(config)) - 1}."
    result = {}
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if kind == "W":
            shape_of(weights, name, 2, source=path)
            result[f"{stem}.weight"] = tensor.T[:, :, None, None]
        elif kind == "b":
            result[f"{stem}.bias"] = tensor
        else:
            result[name] = tensor * factor if factor != 1 and name.startswith(last) else tensor
    return result


# ---- averaged weights, a list in the order of the network's parameters

_PARTS = (
    *("GroupNorm_0", "Conv_0", "Conv2d_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2"),
    *("NIN_0", "NIN_1", "NIN_2", "NIN_3"),
)
"""The parts of a block in the order in which the project registers them."""
_OTHER_ORDER = 0.25
"""Squared distance of averaged weights from others of the same shape, over that from their own,
below which they are in another order."""


def with_named_average(
    content: Mapping[str, object], path: Path, weights: str | None
) -> Mapping[str, object]:
    """The content of a file, with its list of averaged weights under the names of the last ones.

    Other content is returned as it is, and so is all if the last weights are requested.

    Raises:
        InputError: the list does not match the network's parameters in order.
    """
    model, ema = content.get("model"), content.get("ema")
    if weights == "raw" or not isinstance(model, Mapping) or not isinstance(ema, Mapping):
        return content
    names = _parameter_names(model)
    if not names or "shadow_params" not in ema:
        return content
    shadow = ema["shadow_params"]
    problem = None
    if not isinstance(shadow, list | tuple):
        problem = f"are a {type(shadow).__name__}, not a list"
    elif len(shadow) != len(names):
        problem = f"are {len(shadow)} tensors, the network has {len(names)}"
    else:
        averaged = dict(zip(names, shadow, strict=True))
        last = {name: model[name] for name in names}
        placed = {f"ema/shadow_params, {name}": value for name, value in averaged.items()}
        only_tensors({**placed, **last}, source=str(path))
        problem = _other_order(averaged, last)
    if problem is not None:
        raise FileError(
            path,
            f"its averaged weights (ema/shadow_params) {problem}; copy the file again, or pass "
            "`weights=raw` for its last ones",
        )
    return {**content, "ema": {**model, **averaged}}


def _parameter_names(model: Mapping[str, object]) -> list[str]:
    """The names of trained weights, in the network's order."""
    matches = [(re.search(r"(^|\.)(all_modules\..*)", str(name)), name) for name in model]
    inner = {match[2]: str(name) for match, name in matches if match is not None}
    if not any(set(row) <= set(inner) for row in _NAMES):
        return []
    return [inner[name] for name in sorted(set(inner) - {_FOURIER}, key=_position)]


def _position(name: str) -> tuple[int, int, bool, str]:
    """Sort key: the order in which the project's modules register names."""
    if (match := _NUMBERED.fullmatch(name)) is None:
        return (10_000, 0, False, name)
    part, _, kind = match[2].rpartition(".")
    order = _PARTS.index(part) if part in _PARTS else len(_PARTS)
    return (int(match[1]), order, kind in ("bias", "b"), name)


def _other_order(averaged: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> str | None:
    """Why averaged weights are in another order than the last ones; None if unclear.

    Averaged weights are close to the last ones. If another pairing of the tensors of one shape is
    much closer, the order is wrong.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in averaged.items():
        wanted = tuple(last[name].shape)
        if tuple(tensor.shape) != wanted:
            return f"are in another order: {name} would be {list(tensor.shape)}, not {list(wanted)}"
        shapes.setdefault(wanted, []).append(name)
    for names in shapes.values():
        if len(names) < 2 or last[names[0]].numel() < 2:
            continue
        rows, columns = (
            torch.stack([weights[name].detach().float().flatten() for name in names])
            for weights in (averaged, last)
        )
        apart = torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist").square()
        if not bool(apart.isfinite().all()):
            continue  # NaN is refused later, with the name of its weight
        closest = linear_sum_assignment(apart.numpy())[1]
        moved = np.flatnonzero(closest != np.arange(len(names)))
        own, others = apart.diagonal()[moved].sum(), apart[moved, closest[moved]].sum()
        if len(moved) and float(others) < _OTHER_ORDER * float(own):
            first, other = names[moved[0]], names[closest[moved[0]]]
            return f"are in another order: in the place of {first} are those of {other}"
    return None


SCORE_SDE = Family(
    name="score_sde",
    projects="score_sde_pytorch",
    read=read_score_sde,
    names=_NAMES,
    prepare=with_named_average,
    takes_flags=True,
)
