"""diffusers' network and pipeline with the weights of our checkpoints."""

import contextlib
import warnings
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from ddpmbench.checkpoints.diffusers import diffusers_weights
from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.unet.unet import UNet, UNetConfig

with warnings.catch_warnings():
    # Warnings from diffusers' own imports.
    warnings.simplefilter("ignore")
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

_NOISE = (
    "diffusers.pipelines.ddpm.pipeline_ddpm.randn_tensor",
    "diffusers.schedulers.scheduling_ddpm.randn_tensor",
)


def unsupported(checkpoint: Checkpoint) -> str | None:
    """Why diffusers' pipeline cannot run a model; None if it can."""
    network = checkpoint.network
    if not isinstance(network, UNet) or network.config.num_classes:
        return "its network is not an unconditional UNet2DModel"
    if network.config.resampling != "conv":
        return f"its network resamples by {network.config.resampling}, which is not measured"
    if not network.config.head_channels and network.config.num_heads > 1:
        return "UNet2DModel has no number of heads"
    if checkpoint.time_input is not TimeInput.INDEX or checkpoint.image_size is None:
        return "its network takes another time than t - 1, or does not say how large images are"
    if (checkpoint.prediction, checkpoint.variance, checkpoint.clip) != (
        Prediction.EPSILON,
        Variance.FIXED_LARGE,
        True,
    ):
        return "it is not eps, fixed_large, clip"
    if checkpoint.data_range != UNIT_RANGE:
        return f"its data are {checkpoint.data_range}"
    return None


def pipeline(checkpoint: Checkpoint, num_timesteps: int) -> DDPMPipeline:
    """diffusers' DDPMPipeline for `subjects.shortened(checkpoint, num_timesteps)`.

    Args:
        checkpoint: the model; see `unsupported`.
        num_timesteps: T.
    """
    betas = checkpoint.schedule.respaced(num_timesteps).betas
    scheduler = DDPMScheduler(
        num_train_timesteps=num_timesteps,
        trained_betas=betas.numpy(),
        variance_type="fixed_large",
        clip_sample=True,
    )
    result = DDPMPipeline(network(checkpoint), scheduler)
    result.set_progress_bar_config(disable=True)
    return result


def network(checkpoint: Checkpoint) -> UNet2DModel:
    """UNet2DModel with the same weights, on the same device."""
    ours = checkpoint.network
    assert isinstance(ours, UNet)
    with torch.random.fork_rng():
        result = UNet2DModel(**_settings(ours.config), sample_size=checkpoint.image_size)
    result.load_state_dict(diffusers_weights(ours))
    return result.eval().requires_grad_(False).to(next(ours.parameters()).device)


def _settings(config: UNetConfig) -> dict[str, object]:
    down = ["AttnDownBlock2D" if attended else "DownBlock2D" for attended in config.attention]
    up = ["AttnUpBlock2D" if attended else "UpBlock2D" for attended in config.attention[::-1]]
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.channels,
        "layers_per_block": config.num_blocks,
        "down_block_types": down,
        "up_block_types": up,
        "downsample_padding": int(config.symmetric_padding),
        "attention_head_dim": config.head_channels or None,
        "flip_sin_to_cos": config.cosine_first,
        "freq_shift": config.frequency_shift,
        "norm_num_groups": config.norm_groups,
        "attn_norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "act_fn": "silu",
    }


@contextlib.contextmanager
def noise_from(noise: Iterator[Tensor]):
    """Context in which the pipeline draws this noise: x_T, then that of all steps but the last."""

    def draw(shape, generator=None, device=None, dtype=None, layout=None):
        eps = next(noise)
        assert eps.shape == torch.Size(shape)
        return eps.to(device=device, dtype=dtype)

    with contextlib.ExitStack() as stack:
        for name in _NOISE:
            stack.enter_context(mock.patch(name, draw))
        yield
