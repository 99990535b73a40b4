"""The family of lucidrains/denoising-diffusion-pytorch: what its Trainer or its classes save."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.checkpoints.lucidrains_arguments import (
    OWN,
    PACKAGE,
    UnetArguments,
    read_arguments,
)
from ddpmbench.inputs.checkpoints.lucidrains_network import (
    RangeFromZero,
    build_unet,
    installed_version,
    unsaid_arguments,
)
from ddpmbench.inputs.checkpoints.lucidrains_process import read_prediction, read_schedule
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.inputs.checkpoints.unsettled import UnsettledError
from ddpmbench.inputs.checkpoints.weights import only_tensors, sha256_of
from ddpmbench.process.prediction import Prediction, Variance
from ddpmbench.process.schedule import NoiseSchedule

TELLING = (("betas", "model.init_conv.weight"),)
"""The names that tell a GaussianDiffusion of the package around one of its convolutional nets."""
_NETWORK = "model."
_UNET = ("init_conv.weight", "time_mlp.1.weight", "final_res_block.block1.proj.weight")


def is_lucidrains(names: Mapping[str, object]) -> bool:
    """Whether a state dict has the names of a GaussianDiffusion of the package."""
    return set(TELLING[0]) <= set(names)


def other_lucidrains(names: Sequence[str]) -> str | None:
    """Why a file of the package that is none of a GaussianDiffusion is not read, as a line's rest.

    None if it is of something else.

    Args:
        names: of all its tensors.
    """
    whole = f"only its GaussianDiffusion with its Unet is read, {OWN}"
    if {"betas", "posterior_mean_coef1", "model.input_block.weight"} <= {
        name.removeprefix("ema_model.") for name in names
    }:
        return f"another network of {PACKAGE} than its Unet; {whole}"
    ends = {end for end in _UNET if any(name.endswith(end) for name in names)}
    if len(ends) < len(_UNET):
        return None
    if set(_UNET) <= set(names):
        return (
            f"the network of {PACKAGE} alone, without its schedule; pass the file that its "
            f"Trainer saved (model-N.pt), or {OWN}"
        )
    return f"a diffusion of {PACKAGE} without betas (elucidated or of continuous time); {whole}"


def read_lucidrains(
    path: Path,
    state: Mapping[str, object],
    *,
    source: str,
    settings: CheckpointSettings,
    version: str | None = None,
) -> Checkpoint:
    """The checkpoint in a state dict of a GaussianDiffusion, as the package's Trainer saves it.

    The schedule comes from its buffers, what the network predicts from how its loss was weighted.
    Samples of the package have the posterior variance, and clip. The network is the package's
    own, and is not given its own prediction where it is self-conditioned.

    Args:
        path: the file the state dict came from.
        state: what it holds.
        source: the path as the user gave it.
        settings: its `prediction` settles what the loss does not tell.
        version: of the package that wrote the file; None if that is not known.

    Raises:
        UnsettledError: it does not say what the network predicts.
        InputError: its network is not the package's `Unet`, its weights are not whole, or the
            package is missing or of a version whose network is another.

    Source: the package's denoising_diffusion_pytorch.py and learned_gaussian_diffusion.py.
    """
    tensors = only_tensors(state, source=str(path))
    weights = {
        name.removeprefix(_NETWORK): tensor
        for name, tensor in tensors.items()
        if name.startswith(_NETWORK)
    }
    arguments = read_arguments(weights, path)
    schedule = read_schedule(tensors, path=path)
    network = build_unet(arguments, weights, path=path, version=version)
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
    by = "" if version in (None, installed_version()) else f", written by {version}"
    return Checkpoint(
        network=network,
        schedule=schedule,
        prediction=prediction,
        variance=Variance.LEARNED_RANGE if learned else Variance.FIXED_SMALL,
        channels=arguments.channels,
        size_multiple=arguments.size_multiple,
        family="lucidrains",
        source=source,
        sha256=sha256_of(path),
        notes=(
            f"network run by {PACKAGE} {installed_version()}{by}",
            *notes,
            "not in the file, taken as the package has it by default: "
            f"auto_normalize True (else --data-range 0,1), {unsaid_arguments(weights)}",
        ),
    )


def version_in(content: Mapping[str, object]) -> str | None:
    """The version of the package that wrote a file, where it says so."""
    version = content.get("version")
    if isinstance(version, str) and re.fullmatch(r"\d+(\.\d+)+", version):
        return version
    return None


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
