"""The peers of the benchmarks compute what this package computes, the way they say they do."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import refused

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import TermsPass
from ddpmbench.samples.chain import SAMPLE_DRAW, START
from ddpmbench.samples.samplers import SamplerChoice

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import counts
    import diffusers_peer
    import per_step_loop
    import subjects

CPU = torch.device("cpu")
STEPS = 12


@pytest.fixture(scope="module")
def model(small_model):
    return subjects.shortened(small_model, STEPS)


def test_the_bound_of_the_loop_is_ours(model, small_model, small_images, monkeypatch):
    count, size = len(small_images), small_images.pixels.shape[1:]
    terms_pass = TermsPass(model, small_images, seed=3, decoder="tanh", device=CPU)
    design = EveryPairDesign(count, STEPS, 1)
    table = terms_pass.terms(design.index(0, len(design)))
    index = torch.arange(count)
    zero = torch.zeros_like(index)
    noise = [normal_noise(index, zero + t, zero, shape=size, seed=3) for t in range(STEPS, 0, -1)]
    waiting = iter(noise)
    monkeypatch.setattr(torch, "randn_like", lambda like: next(waiting).float())
    loop = per_step_loop.PerStepLoop(model.schedule.betas.numpy())
    x_start = UNIT_RANGE.to_model(torch.tensor(small_images.pixels), torch.float32)
    # The step is counted from 0 there.
    found = loop.calc_bpd_loop(lambda x, t: small_model.model_output(x, t + 1), x_start)
    assert next(waiting, None) is None

    def ours(name):
        return table.values[name].reshape(count, STEPS)[:, ::-1]

    terms, prior = ours("nats"), terms_pass.prior(np.arange(count))
    np.testing.assert_allclose(found["vb"], terms / math.log(2), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["prior_bpd"], prior / math.log(2), rtol=1e-4)
    total = (terms.sum(1) + prior) / math.log(2)
    np.testing.assert_allclose(found["total_bpd"], total, rtol=1e-5)
    np.testing.assert_allclose(found["xstart_mse"], ours("x_start_mse"), rtol=1e-4)


def operations(num_timesteps):
    """Of a loop on a device that computes nothing, so that nothing is shared with the host."""
    betas = NoiseSchedule.linear(1000).respaced(num_timesteps).betas.numpy()
    x_start = torch.zeros(2, 1, 4, 4, device="meta")
    with counts.Operations() as operations:
        per_step_loop.PerStepLoop(betas).calc_bpd_loop(lambda x, t: x, x_start)
    return operations


# A step of the class in openai/improved-diffusion itself, counted like the one below; the casts to
# float32 and the copies are both _to_copy. Nothing of the network is among it.
OF_THE_AUTHORS = {
    **{"_to_copy": 32, "index": 16, "lift_fresh": 16, "unsqueeze": 48, "expand": 16},
    **{"mul": 20, "add": 11, "sub": 10, "rsub": 1, "div": 3, "neg": 3},
    **{"pow": 5, "exp": 3, "log": 3, "tanh": 2, "clamp": 4},
    **{"where": 3, "lt": 1, "gt": 1, "eq": 1, "mean": 4, "randn_like": 1},
}


def test_a_step_of_the_loop_is_the_authors_operation_by_operation():
    few, more = operations(3), operations(4)
    assert more.names - few.names == OF_THE_AUTHORS
    assert more.copies - few.copies == per_step_loop.COPIES_A_STEP


def test_a_checkout_that_is_none_is_named(tmp_path):
    with refused(f"--improved-diffusion {tmp_path}", "checkout"):
        per_step_loop.improved_diffusion(tmp_path, np.full(3, 0.1))


@pytest.fixture(scope="module")
def rich_model(small_model):
    """With the ways of the later networks."""
    config = dataclasses.replace(
        small_model.network.config,
        head_channels=8,
        scale_shift=True,
        symmetric_padding=True,
        cosine_first=True,
        frequency_shift=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = type(small_model.network)(config).eval()
    return dataclasses.replace(small_model, network=network)


@pytest.mark.parametrize("which", ["small_model", "rich_model"])
def test_the_network_of_diffusers_has_our_weights(which, request):
    model = request.getfixturevalue(which)
    assert diffusers_peer.unsupported(model) is None
    x_t, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(1, 4)
    with torch.inference_mode():
        expected = model.model_output(x_t, t)
        found = diffusers_peer.network(model)(x_t, t - 1).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_samples_of_the_pipeline_are_ours(model, small_model):
    index = torch.arange(3)
    sampler = SamplerChoice().prepare(
        model, seed=5, device=CPU, model_output=small_model.model_output
    )
    x = sampler.start(index, (1, 8, 8))
    for step in sampler.steps(x, STEPS, sample=index):
        x = step.x_previous
    draw = torch.full_like(index, SAMPLE_DRAW)
    noise = (
        normal_noise(index, torch.full_like(index, t), draw, shape=(1, 8, 8), seed=5).float()
        for t in (START, *range(STEPS, 1, -1))
    )
    with diffusers_peer.noise_from(noise):
        pipeline = diffusers_peer.pipeline(small_model, STEPS)
        images = pipeline(batch_size=3, num_inference_steps=STEPS, output_type="np").images
    assert next(noise, None) is None
    ours = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(ours - images).max() < 1 / 255


def test_what_diffusers_does_not_compute_is_no_peer(small_model):
    pooled = dataclasses.replace(small_model.network.config, resampling="pool")
    network = type(small_model.network)(pooled)
    assert diffusers_peer.unsupported(dataclasses.replace(small_model, network=network))
    assert diffusers_peer.unsupported(small_model.with_conventions(clip=False))
    assert diffusers_peer.unsupported(small_model.with_conventions(variance="fixed_small"))
    other = dataclasses.replace(small_model, data_range=DataRange(0, 1))
    assert diffusers_peer.unsupported(other) == "its data are [0, 1], 256 levels"


def test_images_of_a_conditional_network_have_classes(small_model):
    images = subjects.images_for(dataclasses.replace(small_model, num_classes=3), 5)
    assert isinstance(images, ImageSet)
    assert images.labels.tolist() == [0, 1, 2, 0, 1]
    assert images.pixels.shape == (5, 1, 8, 8)
