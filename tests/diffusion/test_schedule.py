"""Noise schedules: closed forms, round trips, respacing and the digits that a bound needs."""

import math
from decimal import Decimal, localcontext
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

NAMED = {
    "linear": NoiseSchedule.linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "sqrt_linear": NoiseSchedule.sqrt_linear,
    "cosine": NoiseSchedule.cosine,
    "sigmoid": NoiseSchedule.sigmoid,
    "sigmoid_betas": NoiseSchedule.sigmoid_betas,
    "geometric": NoiseSchedule.geometric,
    "warmup": NoiseSchedule.warmup,
    "cosine_betas": NoiseSchedule.cosine_betas,
}
TABLES = (
    "betas",
    "log_alphas_cumprod",
    "alphas_cumprod",
    "one_minus_alphas_cumprod",
    "snr",
    "posterior_variance",
)
every_schedule = pytest.mark.parametrize("name", NAMED)
lengths = pytest.mark.parametrize("num_timesteps", [50, 1000, 4000])


@every_schedule
@lengths
def test_a_schedule_only_adds_noise(name, num_timesteps):
    s = NAMED[name](num_timesteps)
    assert s.name == name
    assert s.num_timesteps == s.num_original_timesteps == num_timesteps
    assert s.original_timesteps.tolist() == list(range(1, num_timesteps + 1))
    assert ((s.betas > 0) & (s.betas < 1)).all()
    assert (s.snr.diff() < 0).all()
    assert (s.snr > 0).all()
    assert s.posterior_variance[0] == 0
    assert ((s.posterior_variance[1:] > 0) & (s.posterior_variance <= s.betas)[1:]).all()


@every_schedule
def test_the_tables_follow_from_the_variances_in_float64(name):
    s = NAMED[name](200)
    assert {getattr(s, table).dtype for table in TABLES} == {torch.float64}
    alphas_cumprod = np.cumprod(1 - s.betas.numpy())
    previous = np.append(1.0, alphas_cumprod[:-1])
    assert_allclose(s.alphas_cumprod, alphas_cumprod, rtol=1e-12)
    assert_allclose(s.one_minus_alphas_cumprod, 1 - alphas_cumprod, rtol=1e-10)
    assert_allclose(s.snr, alphas_cumprod / (1 - alphas_cumprod), rtol=1e-10)
    posterior = s.betas.numpy() * (1 - previous) / (1 - alphas_cumprod)
    assert_allclose(s.posterior_variance, posterior, rtol=1e-9)


def exact_linear(num_timesteps: int) -> Decimal:
    with localcontext() as context:
        context.prec = 50
        start, end = Decimal("0.1") / num_timesteps, Decimal(20) / num_timesteps
        product = Decimal(1)
        for i in range(num_timesteps):
            product *= 1 - (start + (end - start) * i / (num_timesteps - 1))
        return product


STEP = np.arange(1000)
FORMULAS = {
    "linear": (
        NoiseSchedule.linear(50, beta_start=1e-3, beta_end=0.3),
        np.linspace(1e-3, 0.3, 50),
    ),
    "scaled_linear": (
        NoiseSchedule.scaled_linear(1000),
        (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * STEP / 999) ** 2,
    ),
    "sqrt_linear": (NoiseSchedule.sqrt_linear(1000), 0.02 * (STEP + 1) / 1000),
    "sigmoid_betas": (
        NoiseSchedule.sigmoid_betas(1000),
        1e-4 + (0.02 - 1e-4) / (1 + np.exp(6 - 12 * STEP / 999)),
    ),
    "geometric": (
        NoiseSchedule.geometric(7, beta_start=1e-3, beta_end=0.4),
        1e-3 * 400 ** (STEP[:7] / 6),
    ),
    "cosine_betas": (
        NoiseSchedule.cosine_betas(101, beta_start=1e-3, beta_end=0.1),
        1e-3 + 0.099 * np.sin(np.pi / 2 * STEP[:101] / 100) ** 2,
    ),
    "warmup": (
        NoiseSchedule.warmup(20, beta_start=0.01, beta_end=0.3, share=0.5),
        np.append(np.linspace(0.01, 0.3, 10), np.full(10, 0.3)),
    ),
    "const": (NoiseSchedule.warmup(20, beta_end=0.3, share=0.0), np.full(20, 0.3)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_variances_follow_their_formula(name):
    schedule, betas = FORMULAS[name]
    assert schedule.name == name
    assert_allclose(schedule.betas, betas, rtol=1e-11)


def cosine(t):
    return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2


PRODUCTS = {
    "cosine": (NoiseSchedule.cosine, cosine),
    "raised cosine": (partial(NoiseSchedule.cosine, power=3.0), lambda t: cosine(t) ** 1.5),
    "sigmoid": (NoiseSchedule.sigmoid, lambda t: np.tanh(1.5) - np.tanh(3 * t - 1.5)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@lengths
def test_products_follow_their_formula_until_the_last_step(name, num_timesteps):
    build, formula = PRODUCTS[name]
    s, f = build(num_timesteps), formula(np.arange(num_timesteps + 1) / num_timesteps)
    assert_allclose(s.alphas_cumprod[:-1], (f / f[0])[1:-1], rtol=1e-8)
    assert s.betas[-1] == 0.999


@pytest.mark.parametrize("num_timesteps", [100, 1000, 4000])
def test_linear_scales_to_the_same_amount_of_noise(num_timesteps):
    s = NoiseSchedule.linear(num_timesteps)
    betas = np.linspace(0.1 / num_timesteps, 20 / num_timesteps, num_timesteps)
    assert_allclose(s.betas, betas, rtol=1e-12)
    exact = float(exact_linear(num_timesteps))
    assert s.alphas_cumprod[-1].item() == pytest.approx(exact, rel=1e-11)
    # log alphas_cumprod tends to minus the integral of beta, -(0.1 + 20) / 2, as steps shorten.
    assert s.log_alphas_cumprod[-1].item() == pytest.approx(-10.05, abs=80 / num_timesteps)


def test_linear_is_that_of_ho_et_al():
    s = NoiseSchedule.linear(1000)
    assert s.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02], rel=1e-14)
    assert s.alphas_cumprod[-1].item() == pytest.approx(4.0358e-5, rel=1e-5)
    assert s.posterior_variance[1].item() == pytest.approx(5.453e-5, rel=1e-4)


@every_schedule
def test_alphas_cumprod_and_betas_say_the_same(name):
    s = NAMED[name](300)
    from_betas = NoiseSchedule.from_betas(s.betas)
    assert torch.equal(from_betas.betas, s.betas)
    from_products = NoiseSchedule.from_alphas_cumprod(s.alphas_cumprod)
    # A difference of two numbers near 1 carries their rounding.
    assert_allclose(from_products.betas, s.betas, atol=1e-15, rtol=1e-9)
    assert_allclose(from_products.alphas_cumprod, s.alphas_cumprod, rtol=1e-11)
    for source in (s.betas.tolist(), s.betas.numpy(), s.betas.clone().requires_grad_(True)):
        assert torch.equal(NoiseSchedule.from_betas(source).betas, s.betas)


@every_schedule
@pytest.mark.parametrize("kept", [1, 2, 3, 10, 37, 199, 200])
def test_respacing_visits_steps_of_the_same_process(name, kept):
    s = NAMED[name](200)
    r = s.respaced(kept)
    steps = r.original_timesteps
    assert r.num_timesteps == kept
    assert r.num_original_timesteps == 200
    assert (steps.diff() > 0).all()
    assert steps[-1] == 200
    assert kept == 1 or steps[0] == 1
    assert_allclose(r.alphas_cumprod, s.alphas_cumprod[steps - 1], rtol=1e-12, atol=1e-15)
    assert_allclose(r.one_minus_alphas_cumprod, s.one_minus_alphas_cumprod[steps - 1], rtol=1e-10)
    assert kept < 200 or torch.equal(r.betas, s.betas)


def test_respaced_steps_are_evenly_spaced_and_those_of_the_source():
    # space_timesteps(1000, "5") and (100, "4") of improved-diffusion, plus one: ties to even.
    assert NoiseSchedule.linear(1000).evenly_spaced(5) == [1, 251, 501, 750, 1000]
    assert NoiseSchedule.linear(100).evenly_spaced(4) == [1, 34, 67, 100]


def test_respacing_twice_still_names_the_steps_of_the_first():
    s = NoiseSchedule.cosine(100)
    twice = s.respaced(34).respaced(4)
    assert twice.num_original_timesteps == 100
    assert_allclose(
        twice.alphas_cumprod, s.alphas_cumprod[twice.original_timesteps - 1], rtol=1e-12, atol=1e-15
    )


def test_a_subset_visits_the_steps_it_is_given():
    s = NoiseSchedule.linear(100)
    subset = s.subset([5, 6, 50, 90])
    assert subset.original_timesteps.tolist() == [5, 6, 50, 90]
    assert_allclose(subset.alphas_cumprod, s.alphas_cumprod[[4, 5, 49, 89]], rtol=1e-12)
    # Two neighbors stay neighbors: their step adds the noise it always added.
    assert subset.betas[1].item() == pytest.approx(s.betas[5].item(), rel=1e-10)


@pytest.mark.parametrize(
    "build",
    [
        lambda: NoiseSchedule.from_betas([0.1, 0.0]),
        lambda: NoiseSchedule.from_betas([0.1, 1.0]),
        lambda: NoiseSchedule.from_betas([0.1, -0.2]),
        lambda: NoiseSchedule.from_betas([0.1, math.nan]),
        lambda: NoiseSchedule.from_betas([]),
        lambda: NoiseSchedule.from_betas(0.1),
        lambda: NoiseSchedule.from_betas([[0.1, 0.2]]),
        lambda: NoiseSchedule.from_alphas_cumprod([0.9, 0.9]),
        lambda: NoiseSchedule.from_alphas_cumprod([0.5, 0.6]),
        lambda: NoiseSchedule.from_alphas_cumprod([1.0, 0.6]),
        lambda: NoiseSchedule.from_alphas_cumprod([0.5, 0.0]),
        lambda: NoiseSchedule.from_alphas_cumprod([0.5, math.nan]),
        lambda: NoiseSchedule.from_alphas_cumprod([]),
        lambda: NoiseSchedule.from_alphas_cumprod([[0.9, 0.8]]),
        lambda: NoiseSchedule.linear(10),
        lambda: NoiseSchedule.linear(100).respaced(0),
        lambda: NoiseSchedule.linear(100).respaced(101),
        lambda: NoiseSchedule.linear(100).subset([]),
        lambda: NoiseSchedule.linear(100).subset([0, 5]),
        lambda: NoiseSchedule.linear(100).subset([5, 101]),
        lambda: NoiseSchedule.linear(100).subset([5, 5]),
        lambda: NoiseSchedule.linear(100).subset([6, 5]),
    ],
)
def test_what_is_no_schedule_is_refused_in_one_line(build):
    with pytest.raises(InputError) as caught:
        build()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 10


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ma.array([0.1, 0.2], mask=[False, True]), "masked"),
        (np.array([0.1 + 1j, 0.2]), "complex128"),
        (torch.tensor([0.1 + 1j, 0.2]), "complex64"),
        (["0.1", "0.2"], "real numbers"),
        (np.array(["0.1", "0.2"]), "real numbers"),
        (None, "real numbers"),
        ([[0.1], [0.2, 0.3]], "real numbers"),
        (np.array([0.1, 0.2], np.float16), "16 bits"),
        (torch.tensor([0.1, 0.2]).half(), "16 bits"),
        (torch.tensor([0.1, 0.2]).bfloat16(), "16 bits"),
        (torch.tensor([0.1, 0.2], device="meta"), "dense tensor"),
        (torch.tensor([0.1, 0.2]).to_sparse(), "dense tensor"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_of_another_kind_are_refused(values, words):
    for build in (NoiseSchedule.from_betas, NoiseSchedule.from_alphas_cumprod):
        with pytest.raises(InputError, match=words):
            build(values)


@pytest.mark.parametrize(
    "name", ["linear", "scaled_linear", "geometric", "warmup", "sigmoid_betas", "cosine_betas"]
)
def test_ends_that_fall_are_refused(name):
    with pytest.raises(InputError, match="above the last"):
        NAMED[name](1000, beta_start=0.02, beta_end=1e-4)
    assert (NAMED[name](1000, beta_start=0.01, beta_end=0.01).betas.diff().abs() < 1e-15).all()


def test_nothing_left_of_the_data_is_refused():
    NoiseSchedule.from_betas(np.full(1000, 0.5))  # 2^-1000
    for build in (
        lambda: NoiseSchedule.from_betas(np.full(1100, 0.5)),
        lambda: NoiseSchedule.warmup(100_000, beta_end=0.5, share=0.0),
    ):
        with pytest.raises(InputError, match="nothing is left of the data; take fewer steps"):
            build()
    with pytest.raises(InputError, match="rounds to 1; take more of them"):
        NoiseSchedule.from_betas(np.full(1000, 0.5)).respaced(5)
