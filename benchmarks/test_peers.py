"""Peers in the same run, with the same weights, timed alternately; results must agree.

Peers run with their defaults: on a CPU in their own process (see `own_process`), on a GPU in ours.
"""

import contextlib
from pathlib import Path
from unittest import mock

import own_process
import pytest
import torch
from bench import relative_error, running
from cases import (
    BF16,
    CIFAR10,
    FP16,
    FP32,
    SHIPPED,
    TF32,
    Case,
    cases,
    channels_last,
    compiled,
    eager,
    graphed,
)
from own_process import OwnProcess, Peer
from per_step_loop import BPD, PerStepLoop, improved_diffusion
from rows import Work, few, measure, paired_ratio, record_ratio
from subjects import images_for, shortened

from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.execution.devices import evaluating, keeping_memory, strict_float32
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import TermsPass
from ddpmbench.samples.chain import SAMPLE_DRAW, START

LOOP = [
    Case(SHIPPED, "cpu", 32, channels_last(), quick=True),
    Case(SHIPPED, "cpu", 32, compiled(BF16)),
    *cases(CIFAR10, "cpu", [8], [channels_last(), compiled(BF16)]),
    Case(SHIPPED, "cuda", 128, eager(), quick=True),
    *cases(CIFAR10, "cuda", [128], [eager(), compiled(), compiled(FP16)]),
]
PIPELINE = [
    Case(SHIPPED, "cpu", 32, channels_last(), quick=True),
    Case(SHIPPED, "cpu", 1, channels_last()),
    Case(SHIPPED, "cpu", 32, compiled(BF16)),
    Case(CIFAR10, "cpu", 1, channels_last()),
    *cases(CIFAR10, "cpu", [8], [channels_last(), compiled(BF16)]),
    Case(SHIPPED, "cuda", 128, eager(), quick=True),
    *cases(CIFAR10, "cuda", [1, 512], [eager(), graphed(FP16), compiled(FP16)]),
]
LEVELS = {TF32: 0.5, FP16: 0.5, BF16: 2.0}
"""Largest RMS difference of samples, in levels of 255; in float32 no pixel may differ by more than
one."""


@pytest.fixture(autouse=True)
def steady_memory(bench):
    """Memory is kept between the rounds, each of which stands for a part of one run.

    Peers on a CPU are in their own process, and keep their settings.
    """
    with keeping_memory() if bench.device.type == "cpu" else contextlib.nullcontext():
        yield


@pytest.mark.cases(LOOP)
def test_every_pair_against_the_loop(benchmark, bench, request, case):
    checkpoint, engine = bench.checkpoint(case.model), bench.engine(case).engine
    conventions = str(checkpoint.prediction), str(checkpoint.variance), checkpoint.clip
    if checkpoint.num_classes or conventions != ("eps", "fixed_large", True):
        pytest.skip("--ckpt: the loop is of eps, fixed_large and clip, without classes")
    if checkpoint.data_range != UNIT_RANGE:
        pytest.skip("--ckpt: the loop is of data in [-1, 1] with 256 levels")
    # At t = 1 we compute decoders that the loop lacks; such terms must be rare, as in a real run.
    num_timesteps = steps_of(bench, case, many=25)
    model = shortened(checkpoint, num_timesteps)
    images = images_for(checkpoint, case.batch)
    design = EveryPairDesign(len(images), num_timesteps, 1)
    terms_pass = TermsPass(
        model,
        images,
        seed=0,
        decoder="tanh",
        device=bench.device,
        model_output=engine.model_output,
    )
    starts = range(0, len(design), case.batch)
    batches = [design.index(start, start + case.batch) for start in starts]

    def ours():
        with running(engine):
            return [terms_pass.terms(index).values["nats"] for index in batches]

    betas, checkout = model.schedule.betas.numpy(), request.config.getoption("--improved-diffusion")
    loop = improved_diffusion(Path(checkout), betas) if checkout else PerStepLoop(betas)
    pixels = torch.tensor(images.pixels, device=bench.device)
    x_start = UNIT_RANGE.to_model(pixels, torch.float32)

    def theirs():
        with evaluating(checkpoint.network):
            return loop.calc_bpd_loop(lambda x, t: checkpoint.model_output(x, t + 1), x_start)

    work = Work("every pair against the loop", len(design), num_timesteps, None, num_timesteps)
    measure(benchmark, bench, case, work, ours)
    with as_it_comes(bench, case, own_process.LOOP, num_timesteps, theirs, checkout) as peer:
        ratio = paired_ratio(peer, ours, bench.device, rounds=min(few(bench, case), 5))
    record_ratio(benchmark, "ratio", ratio)
    error = terms_error(terms_pass, ours, theirs, num_timesteps)
    benchmark.extra_info.update(peer=loop.label, terms_error=error)
    tolerance = benchmark.extra_info["eps_tolerance"]  # of the network
    assert error <= (1e-4 if case.choice.precision is FP32 else tolerance)


def terms_error(terms_pass, ours, theirs, num_timesteps):
    """The largest difference of a term, with the same noise, over the mean bound of an image."""
    shape = terms_pass.images.pixels.shape
    image = torch.arange(shape[0], device=terms_pass.device)
    zero = torch.zeros_like(image)
    noise = (
        normal_noise(image, zero + t, zero, shape=shape[1:], seed=terms_pass.seed).float()
        for t in range(num_timesteps, 0, -1)
    )
    with mock.patch("torch.randn_like", side_effect=lambda like: next(noise)), strict_float32():
        expected = theirs()["vb"].double().flip(1).cpu()
    nats = torch.cat([torch.from_numpy(values) for values in ours()])
    terms = nats.view(shape[0], num_timesteps) / BPD
    return float((terms - expected).abs().max() / expected.sum(1).mean().abs())


@pytest.mark.cases(PIPELINE)
def test_sampler_against_the_pipeline(benchmark, bench, case):
    peer = pytest.importorskip("diffusers_peer", reason="diffusers is not installed")
    checkpoint, engine = bench.checkpoint(case.model), bench.engine(case).engine
    if (reason := peer.unsupported(checkpoint)) is not None:
        pytest.skip(f"--ckpt: {reason}")
    num_timesteps = steps_of(bench, case)
    pipeline = peer.pipeline(checkpoint, num_timesteps)
    sample = bench.chains(case, num_timesteps)

    def ours():
        with running(engine):
            x = sample()
        return (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()

    def theirs():
        return pipeline(
            batch_size=case.batch, num_inference_steps=num_timesteps, output_type="np"
        ).images

    evaluations = case.batch * num_timesteps
    work = Work(
        "sampler against the pipeline", evaluations, num_timesteps, case.batch, num_timesteps
    )
    measure(benchmark, bench, case, work, ours)
    with as_it_comes(bench, case, own_process.PIPELINE, num_timesteps, theirs) as alone:
        ratio = paired_ratio(alone, ours, bench.device, rounds=few(bench, case))
    record_ratio(benchmark, "ratio", ratio)
    inputs = bench.inputs(case.model, case.batch)
    index = torch.arange(case.batch, device=bench.device)
    draw, shape = torch.full_like(index, SAMPLE_DRAW), tuple(inputs.x_t.shape[1:])
    noise = (
        normal_noise(index, torch.full_like(index, t), draw, shape=shape, seed=0)
        for t in (START, *range(num_timesteps, 1, -1))
    )
    with peer.noise_from(noise), strict_float32():
        expected = theirs()
        output = pipeline.unet(inputs.x_t, inputs.t - 1).sample
    levels = 255 * abs(ours() - expected)
    largest, typical = float(levels.max()), float((levels**2).mean() ** 0.5)
    error = relative_error(output, bench.reference(case.model, case.batch))
    benchmark.extra_info.update(
        peer="diffusers DDPMPipeline",
        peer_eps_error=error,
        levels_error=largest,
        levels_rms_error=typical,
    )
    assert error <= 2e-5, "the peer has other weights"
    if case.choice.precision is FP32:
        assert largest <= 1
    else:
        assert typical <= LEVELS[case.choice.precision]


@contextlib.contextmanager
def as_it_comes(bench, case, kind, num_timesteps, theirs, checkout=None):
    """Context with the peer's work, in the process where it is timed."""
    ckpt = None if bench.ckpt is None else str(bench.ckpt)
    peer = Peer(kind, case.model, ckpt, case.batch, num_timesteps, checkout)
    if bench.device.type != "cpu":
        yield theirs
    elif bench.smoke and (case.choice.compiled or kind == own_process.PIPELINE):
        yield peer.work()  # one peer process is enough for a smoke test
    else:
        with OwnProcess(peer) as alone:
            yield alone


def steps_of(bench, case, *, many=8):
    """Number of timesteps of the model that both run."""
    if bench.device.type == "cpu":
        return 8 if case.model == CIFAR10 or bench.quick else many
    return 50
