"""The terms of the bound: recorded networks, closed forms, and a second implementation."""

import numpy as np
import pytest
import torch
from laws import (
    check_decoder_known_answers,
    check_fixed_large_constant,
    check_prior_known_answers,
    check_rows,
)
from oracles import oracle_checkpoint, oracle_images
from traces import SLICE, WHOLE, check_trace, load_trace

from ddpmbench.diffusion.process import GaussianDiffusion, Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.decoders import MODEL_COLUMNS
from ddpmbench.likelihood.terms import TermIndex, TermsPass, bound_terms, prior_bits_per_dim

GENERATOR = torch.Generator().manual_seed(0)
SCHEDULE = NoiseSchedule.linear(40)
STEPS = torch.arange(1, 41)
X_START = (torch.randint(0, 256, (40, 1, 3, 3), generator=GENERATOR) / 127.5 - 1).double()
EPS = torch.randn(40, 1, 3, 3, dtype=torch.float64, generator=GENERATOR)
OUTPUT = EPS + 0.2 * torch.randn(40, 1, 3, 3, dtype=torch.float64, generator=GENERATOR)


def test_a_recorded_network_has_the_terms_that_others_computed():
    check_trace(load_trace(SLICE))


@pytest.mark.skipif(
    not WHOLE.exists(), reason="shared/data is not beside the repository: the slice stands in"
)
def test_all_of_the_recorded_network_has_the_terms_that_others_computed():
    check_trace(load_trace(WHOLE))


def test_the_decoder_costs_the_known_bits():
    check_decoder_known_answers()


def test_the_prior_costs_the_known_bits():
    check_prior_known_answers()


def test_fixed_large_costs_its_constant():
    check_fixed_large_constant()


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", list(Variance))
@pytest.mark.parametrize("prediction", list(Prediction))
def test_rows_are_those_of_a_second_implementation(prediction, variance, clip):
    check_rows(prediction=prediction, variance=variance, clip=clip)


@pytest.mark.parametrize("clip", [True, False])
def test_fixed_small_is_the_squared_error_times_the_fall_of_the_snr(clip):
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, OUTPUT, variance="fixed_small", clip=clip)
    weight = -SCHEDULE.snr.diff() / 2
    mse = result.x_start_mse if clip else result.x_start_mse_noclip
    torch.testing.assert_close(result.nats[1:], weight * mse[1:], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("clip", [True, False])
def test_fixed_large_is_a_constant_and_a_weighted_squared_error(clip):
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, OUTPUT, variance="fixed_large", clip=clip)
    ratio = (SCHEDULE.posterior_variance / SCHEDULE.betas)[1:]
    constant = 0.5 * (ratio - 1 - ratio.log())
    weight = -SCHEDULE.snr.diff() / 2 * ratio
    mse = result.x_start_mse if clip else result.x_start_mse_noclip
    expected = constant + weight * mse[1:]
    torch.testing.assert_close(result.nats[1:], expected, rtol=1e-9, atol=1e-14)


def test_the_errors_are_those_of_the_network():
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, OUTPUT)
    ab = SCHEDULE.alphas_cumprod[:, None, None, None]
    wrong = X_START + ((1 - ab) / ab).sqrt() * (EPS - OUTPUT)
    for got, expected in (
        (result.eps_mse, (EPS - OUTPUT).square()),
        (result.x_start_mse_noclip, (X_START - wrong).square()),
        (result.x_start_mse, (X_START - wrong.clamp(-1, 1)).square()),
    ):
        torch.testing.assert_close(got, expected.mean((1, 2, 3)), rtol=1e-9, atol=1e-14)
    assert (result.x_start_mse < result.x_start_mse_noclip).any()


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["x_start", "v", "previous_mean"])
def test_the_errors_do_not_depend_on_how_the_network_says_it(prediction, clip):
    expected = bound_terms(SCHEDULE, X_START, STEPS, EPS, OUTPUT)
    diffusion = GaussianDiffusion(SCHEDULE, clip=False)
    x_t = diffusion.q_sample(X_START, STEPS, EPS)
    step = diffusion.p_mean_variance(OUTPUT, x_t, STEPS)
    ab = SCHEDULE.alphas_cumprod[:, None, None, None]
    output = {
        "x_start": step.pred_x_start,
        "v": ab.sqrt() * OUTPUT - (1 - ab).sqrt() * step.pred_x_start,
        "previous_mean": step.mean,
    }[prediction]
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, output, prediction=prediction, clip=clip)
    for name in ("x_start_mse", "x_start_mse_noclip", "eps_mse"):
        torch.testing.assert_close(
            getattr(result, name), getattr(expected, name), rtol=1e-8, atol=1e-12
        )
    if clip and prediction != "previous_mean":
        torch.testing.assert_close(result.nats, expected.nats, rtol=1e-8, atol=1e-12)


def test_a_perfect_network_pays_nothing_but_the_decoder():
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, EPS, variance="fixed_small")
    assert result.nats[1:].abs().max() < 1e-12
    assert result.nats[0] > 0


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_columns_of_the_decoder_belong_to_the_first_step_alone(variance):
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, OUTPUT, variance=variance)
    for name, values in result.decoders.items():
        assert values[0].isfinite() != (name in MODEL_COLUMNS), name
        assert values[1:].isnan().all()
    assert result.decoders["decoder_posterior_exact_clip"][0] == pytest.approx(
        result.nats[0].item(), rel=1e-12
    )


def test_a_row_does_not_depend_on_the_rows_around_it():
    whole = bound_terms(SCHEDULE, X_START, STEPS, EPS, OUTPUT)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = bound_terms(SCHEDULE, X_START[order], STEPS[order], EPS[order], OUTPUT[order])
    assert torch.equal(shuffled.nats, whole.nats[order])
    for i in (0, 1, 39):
        part = slice(i, i + 1)
        alone = bound_terms(SCHEDULE, X_START[part], STEPS[part], EPS[part], OUTPUT[part])
        torch.testing.assert_close(alone.nats, whole.nats[part], rtol=1e-13, atol=0)


def test_every_term_is_differentiable_in_the_output():
    output = OUTPUT.clone().requires_grad_(True)
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, output, clip=False)
    (gradient,) = torch.autograd.grad(result.nats.sum(), output)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prediction": "noise"}, "noise"),
        ({"variance": "huge"}, "huge"),
        ({"variance": "learned_range"}, "model_output"),
        ({"decoder": "logistic"}, "logistic"),
    ],
)
def test_unknown_names_and_unfit_shapes_are_refused(change, error):
    with pytest.raises(ValueError, match=error):
        bound_terms(SCHEDULE, X_START, STEPS, EPS, OUTPUT, **change)


@pytest.mark.parametrize("t", [0, 41])
def test_steps_outside_the_schedule_are_refused(t):
    with pytest.raises(ValueError, match=r"1\.\.40"):
        bound_terms(SCHEDULE, X_START[:1], torch.tensor([t]), EPS[:1], OUTPUT[:1])


def test_the_prior_of_no_steps_but_noise_is_nothing_and_of_data_is_something():
    x = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]).double()
    short = NoiseSchedule.linear(100, beta_end=0.01)
    prior = prior_bits_per_dim(short, x)
    assert (prior[1] - prior[0]).item() == pytest.approx(
        short.alphas_cumprod[-1].item() / 2 / np.log(2), rel=1e-12
    )


def test_batches_order_and_repetition_of_rows_cannot_change_a_value():
    images = oracle_images(4)
    checkpoint = oracle_checkpoint(images, SCHEDULE, spread=0.01)
    rng = np.random.default_rng(0)
    image, t, draw = rng.integers(0, 4, 90), rng.integers(1, 41, 90), rng.integers(0, 3, 90)
    rows = TermIndex(image, t, draw)

    def values(size: int) -> dict[str, np.ndarray]:
        terms_pass = TermsPass(
            checkpoint, images, seed=3, decoder="exact", device=torch.device("cpu")
        )
        tables = [terms_pass.terms(rows[i : i + size]) for i in range(0, 90, size)]
        assert terms_pass.num_evaluations == 90
        return {k: np.concatenate([table.values[k] for table in tables]) for k in tables[0].values}

    whole = values(90)
    for size in (1, 7, 64):
        for name, column in values(size).items():
            np.testing.assert_allclose(column, whole[name], rtol=1e-5, err_msg=name)
