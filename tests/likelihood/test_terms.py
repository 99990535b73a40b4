"""The terms of the bound: recorded networks, closed forms, and a second implementation."""

import numpy as np
import pytest
import torch
from laws import check_rows
from oracles import oracle_checkpoint, oracle_images
from traces import WHOLE, check_trace, load_trace

from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.decoders import MODEL_COLUMNS
from ddpmbench.likelihood.terms import TermIndex, TermsPass, bound_terms, prior_bits_per_dim

GENERATOR = torch.Generator().manual_seed(0)
SCHEDULE = NoiseSchedule.linear(40)
STEPS = torch.arange(1, 41)
X_START = (torch.randint(0, 256, (40, 1, 3, 3), generator=GENERATOR) / 127.5 - 1).double()
EPS = torch.randn(40, 1, 3, 3, dtype=torch.float64, generator=GENERATOR)
OUTPUT = EPS + 0.2 * torch.randn(40, 1, 3, 3, dtype=torch.float64, generator=GENERATOR)


@pytest.mark.skipif(
    not WHOLE.exists(), reason="shared/data is not beside the repository: the slice stands in"
)
def test_all_of_the_recorded_network_has_the_terms_that_others_computed():
    check_trace(load_trace(WHOLE))


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", list(Variance))
@pytest.mark.parametrize("prediction", list(Prediction))
def test_rows_are_those_of_a_second_implementation(prediction, variance, clip):
    check_rows(prediction=prediction, variance=variance, clip=clip)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_term_is_a_constant_and_a_weighted_squared_error(variance, clip):
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, OUTPUT, variance=variance, clip=clip)
    ratio = (SCHEDULE.posterior_variance / SCHEDULE.betas)[1:]
    ratio = torch.ones_like(ratio) if variance == "fixed_small" else ratio
    weight, constant = -SCHEDULE.snr.diff() / 2 * ratio, 0.5 * (ratio - 1 - ratio.log())
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


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_columns_of_the_decoder_belong_to_the_first_step_alone(variance):
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, OUTPUT, variance=variance)
    for name, values in result.decoders.items():
        assert values[0].isfinite() != (name in MODEL_COLUMNS), name
        assert values[1:].isnan().all()
    assert result.decoders["decoder_posterior_exact_clip"][0] == pytest.approx(
        result.nats[0].item(), rel=1e-12
    )


def test_every_term_is_differentiable_in_the_output():
    output = OUTPUT.clone().requires_grad_(True)
    result = bound_terms(SCHEDULE, X_START, STEPS, EPS, output, clip=False)
    (gradient,) = torch.autograd.grad(result.nats.sum(), output)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_the_prior_of_no_steps_but_noise_is_nothing_and_of_data_is_something():
    x = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]).double()
    short = NoiseSchedule.linear(100, beta_end=0.01)
    prior = prior_bits_per_dim(short, x)
    assert (prior[1] - prior[0]).item() == pytest.approx(
        short.alphas_cumprod[-1].item() / 2 / np.log(2), rel=1e-12
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prediction": "noise"}, "noise"),
        ({"variance": "huge"}, "huge"),
        ({"variance": "learned_range"}, "model_output"),
        ({"decoder": "logistic"}, "logistic"),
        ({"t": STEPS - 1}, r"1\.\.40"),
        ({"t": STEPS + 1}, r"1\.\.40"),
    ],
)
def test_unknown_names_unfit_shapes_and_steps_outside_are_refused(change, error):
    given = {"x_start": X_START, "t": STEPS, "eps": EPS, "model_output": OUTPUT}
    with pytest.raises(ValueError, match=error):
        bound_terms(SCHEDULE, **(given | change))


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
