"""The family of lucidrains/denoising-diffusion-pytorch: what its Trainer or its classes save."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.checkpoints.lucidrains_arguments import (
    PACKAGE,
    UnetArguments,
    read_arguments,
)
from ddpmbench.inputs.checkpoints.lucidrains_network import (
    RangeFromZero,
    build_unet,
    installed_version,
    unsaid_arguments,
    version_in,
)
from ddpmbench.inputs.checkpoints.lucidrains_process import read_prediction, read_schedule
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.inputs.checkpoints.unsettled import UnsettledError
from ddpmbench.inputs.checkpoints.weights import only_tensors, sha256_of
from ddpmbench.process.prediction import Prediction, Variance
from ddpmbench.process.schedule import NoiseSchedule

_NETWORK = "model."
_EMA = "ema_model."
_ONLINE = "online_model."


def is_lucidrains(state: Mapping[str, object]) -> bool:
    """Whether it is what the Trainer, its EMA or a GaussianDiffusion of the package saves."""
    first = "init_conv.weight"  # of each of its networks of convolutions
    sets = _sets(state)
    if "" in sets:
        return "betas" in state and _NETWORK + first in state
    return any(
        "betas" in names or any(name.endswith(first) for name in names) for names in sets.values()
    )


def read_lucidrains(
    path: Path, state: Mapping[str, object], *, source: str, settings: CheckpointSettings
) -> Checkpoint:
    """The checkpoint that the package's Trainer saved as model-N.pt.

    Also a state dict of a GaussianDiffusion, or of the EMA of one, alone. The schedule comes from
    its buffers, what the network predicts from how its loss was weighted. Samples of the package
    have the posterior variance, and clip. The network is the package's own, and is not given its
    own prediction where it is self-conditioned.

    Args:
        path: the file the state came from.
        state: what it holds.
        source: the path as the user gave it.
        settings: its `weights` picks one of two sets; its `prediction` settles what the loss does
            not tell.

    Raises:
        UnsettledError: it does not say what the network predicts.
        InputError: it is not of a GaussianDiffusion with the package's `Unet`, its weights are
            not whole, or the package is missing or of a version whose network is another.

    Source: the package's denoising_diffusion_pytorch.py and learned_gaussian_diffusion.py.
    """
    kind, name, stored = _chosen(_sets(state), settings.weights, path)
    if "betas" not in stored:
        raise InputError(
            f"{path}: saved by {PACKAGE}, but of no GaussianDiffusion ({name or 'it'} has no "
            "betas); build its network with --network FILE.py:NAME"
        )
    tensors = only_tensors(stored, source=str(path))
    weights = {
        name.removeprefix(_NETWORK): tensor
        for name, tensor in tensors.items()
        if name.startswith(_NETWORK)
    }
    arguments = read_arguments(weights, path)
    schedule = read_schedule(tensors, path=path)
    written = version_in(state)
    network = build_unet(arguments, weights, path=path, version=written)
    prediction, notes = _prediction(arguments, schedule, tensors, settings)
    if prediction is None:
        raise UnsettledError(
            f"{path}: does not say what the network predicts (its loss_weight is that of no "
            "objective); pass --prediction eps, x_start or v, whichever it was trained with",
            family="lucidrains",
            path=path,
            weights=weights,
            missing=("--prediction v",),
        )
    learned = arguments.learned_variance
    if learned:
        network = _with_their_range(network, schedule)
    by = "" if written in (None, installed_version()) else f", written by {written}"
    return Checkpoint(
        network=network,
        schedule=schedule,
        prediction=prediction,
        variance=Variance.LEARNED_RANGE if learned else Variance.FIXED_SMALL,
        weights=kind,
        channels=arguments.channels,
        size_multiple=arguments.size_multiple,
        family="lucidrains",
        source=source,
        sha256=sha256_of(path),
        notes=(
            f"network run by {PACKAGE} {installed_version()}{by}",
            *([f"weights: {'EMA' if kind == 'ema' else kind} ({name})"] if kind else []),
            *notes,
            "not in the file, taken as the package has it by default: "
            f"auto_normalize True (else --data-range 0,1), {unsaid_arguments(weights)}",
        ),
    )


def _sets(state: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """The states of a GaussianDiffusion that it holds, by where they are; `""` is all of it."""
    if {"step", "model", "ema"} <= set(state):
        found = {f"ema.{_EMA}": _under(_EMA, _dict(state["ema"])), "model": _dict(state["model"])}
    elif any(name.startswith(_EMA) for name in state):
        found = {_EMA: _under(_EMA, state), _ONLINE: _under(_ONLINE, state)}
    else:
        return {"": state}
    return {name: names for name, names in found.items() if names}


def _chosen(
    sets: Mapping[str, Mapping[str, object]], asked: str | None, path: Path
) -> tuple[str | None, str, Mapping[str, object]]:
    """The kind of weights, where they are, and what is there."""
    if "" in sets:
        if asked is not None:
            raise InputError(
                f"--weights {asked}: {path} holds one set of weights and does not say which; "
                "leave the option out"
            )
        return None, "", sets[""]
    kinds = {("ema" if name.endswith(_EMA) else "raw"): name for name in sets}
    kind = asked or ("ema" if "ema" in kinds else "raw")
    if kind not in kinds:
        raise InputError(f"--weights {kind}: {path} holds {' and '.join(kinds) or 'none'} alone")
    return kind, kinds[kind], sets[kinds[kind]]


def _prediction(
    arguments: UnetArguments,
    schedule: NoiseSchedule,
    tensors: Mapping[str, Tensor],
    settings: CheckpointSettings,
) -> tuple[Prediction | None, list[str]]:
    """What the network predicts, and what there is to say of it."""
    if arguments.learned_variance:
        return Prediction.EPSILON, [
            "a LearnedGaussianDiffusion, which is trained on the noise whatever its objective"
        ]
    notes = []
    if arguments.self_condition:
        notes.append(
            "self-conditioned: its own prediction is zeros here, as in half of its training"
        )
    prediction = read_prediction(schedule, tensors.get("loss_weight"))
    if prediction is None and settings.prediction is not None:
        prediction = Prediction(settings.prediction)
        notes.append(f"--prediction {prediction}, which the file does not say")
    return prediction, notes


def _with_their_range(network: nn.Module, schedule: NoiseSchedule) -> nn.Module:
    if schedule.num_timesteps == 1:
        return network
    return RangeFromZero(
        network,
        log_beta=float(schedule.betas[0].log()),
        log_posterior=float(schedule.posterior_variance[1].log()),
    )


def _under(prefix: str, names: Mapping[str, object]) -> dict[str, object]:
    return {
        name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)
    }


def _dict(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        return {}
    return {str(name): item for name, item in value.items()}
