"""The one U-Net against diffusers', weight by weight through the reader of its files."""

import dataclasses

import pytest
import torch
from peers import CIFAR10_UNET, DDPMScheduler, diffusers_unet, save_flat, save_pipeline
from unet_configs import TINY_CONFIG

from ddpmbench import load_checkpoint
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import UNet, UNetConfig

HEADS = {
    "sample_size": 16,
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "attn_norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift",
}
CLASSES = {
    "sample_size": 8,
    "out_channels": 6,
    "num_class_embeds": 10,
    "block_out_channels": [16, 32],
    "down_block_types": ["AttnDownBlock2D", "ResnetDownsampleBlock2D"],
    "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
GREY = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def agrees(peer, network, settings, *, batch, labels=None):
    """Whether both give the same for the same x_t and t, in float32."""
    size = settings["sample_size"]
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, peer.config.in_channels, size, size, generator=generator)
    time = torch.tensor([3, 871])[:batch]
    with torch.no_grad():
        theirs = peer(x_t, time, class_labels=labels).sample
        ours = network(x_t, time.float(), labels)
    return float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_google_ddpm_cifar10_32(tmp_path):
    peer = diffusers_unet(CIFAR10_UNET)
    scheduler = DDPMScheduler(variance_type="fixed_large")
    checkpoint = load_checkpoint(save_flat(tmp_path, peer, scheduler))
    assert sum(weight.numel() for weight in checkpoint.network.parameters()) == 35_746_307
    assert checkpoint.variance is Variance.FIXED_LARGE
    assert (checkpoint.image_size, checkpoint.channels, checkpoint.size_multiple) == (32, 3, 8)
    assert agrees(peer, checkpoint.network, CIFAR10_UNET, batch=1)


@pytest.mark.parametrize("save", [save_flat, save_pipeline])
def test_several_heads_and_scale_shift(tmp_path, save):
    peer = diffusers_unet(HEADS)
    checkpoint = load_checkpoint(save(tmp_path, peer))
    assert agrees(peer, checkpoint.network, HEADS, batch=2)


def test_classes_a_learned_variance_and_residual_blocks_that_resample(tmp_path):
    peer = diffusers_unet(CLASSES)
    scheduler = DDPMScheduler(variance_type="learned_range")
    checkpoint = load_checkpoint(save_pipeline(tmp_path, peer, scheduler))
    assert checkpoint.variance is Variance.LEARNED_RANGE
    assert checkpoint.num_classes == 10
    labels = torch.tensor([7, 0])
    assert agrees(peer, checkpoint.network, CLASSES, batch=2, labels=labels)


def test_grey_images_and_the_cosine_schedule(tmp_path):
    peer = diffusers_unet(GREY)
    scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    checkpoint = load_checkpoint(save_pipeline(tmp_path, peer, scheduler))
    assert checkpoint.prediction is Prediction.V
    assert checkpoint.variance is Variance.FIXED_SMALL
    assert checkpoint.schedule.name == "cosine"
    assert agrees(peer, checkpoint.network, GREY, batch=2)


def test_every_weight_matters(tmp_path):
    # a weight that parity would not notice would be read into the wrong place unseen
    peer = diffusers_unet(CLASSES)
    checkpoint = load_checkpoint(
        save_flat(tmp_path, peer, DDPMScheduler(variance_type="learned_range"))
    )
    labels = torch.tensor([7, 0])
    for name, weight in checkpoint.network.named_parameters():
        kept = weight.data.clone()
        # a key's bias alone moves no softmax, so the whole of each weight is changed
        weight.data.mul_(1.5).add_(0.1)
        assert not agrees(peer, checkpoint.network, CLASSES, batch=2, labels=labels), name
        weight.data.copy_(kept)
    assert agrees(peer, checkpoint.network, CLASSES, batch=2, labels=labels)


@pytest.mark.parametrize("resampling", ["conv", "pool", "block"])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_each_image_of_a_batch_has_its_own_time(resampling, scale_shift):
    config = dataclasses.replace(TINY_CONFIG, resampling=resampling, scale_shift=scale_shift)
    network = UNet(config).double().eval()
    x_t = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    time = torch.tensor([0.0, 17.0, 999.0])
    with torch.no_grad():
        together = network(x_t, time)
        singles = [network(x_t[i : i + 1], time[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(singles), rtol=1e-10, atol=1e-12)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out_channels": 3}, "once or twice"),
        ({"channels": (8, 18)}, "norm groups 4 do not divide 18 channels"),
        ({"num_heads": 3}, "do not split into attention heads"),
        ({"attention": (True,)}, "one entry per resolution"),
    ],
)
def test_what_is_no_network_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        UNet(dataclasses.replace(TINY_CONFIG, **changes))


def test_a_configuration_survives_its_dictionary():
    assert UNetConfig.from_dict(TINY_CONFIG.to_dict()) == TINY_CONFIG
    with pytest.raises(InputError, match="unknown setting 'width'"):
        UNetConfig.from_dict({**TINY_CONFIG.to_dict(), "width": 3})
