"""The chain of a code: its draws are the forward process's, and its length is their bound."""

import numpy as np
import pytest
import torch
from normal_data import SHAPE, VARIANCES, normal_images, trained_on_normal_data

from ddpmbench.codec import chain as module
from ddpmbench.codec.chain import Chain, ReverseProcess
from ddpmbench.codec.rans import Coder, DamageError
from ddpmbench.diffusion.gaussian import discretized_normal_log_prob
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

STEPS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 14, 18, 24, 60)
LINEAR = NoiseSchedule.linear(60, beta_start=1e-4, beta_end=0.2)
DIMS, LANES = VARIANCES.size, 256


@pytest.fixture(scope="module")
def images():
    return normal_images(400)


def mean_squares(x_start, t):
    """(n, D) expected squared error of the Wiener filter's x_start at t, over the noise."""
    kept = float(LINEAR.alphas_cumprod[t - 1])
    share = kept * VARIANCES.ravel() / (kept * VARIANCES.ravel() + 1 - kept)
    return np.square(x_start * (1 - share)) + np.square(share) * (1 - kept) / kept


def process_for(x_start):
    """The best constant variances."""
    kept = LINEAR.subset(STEPS)
    variances = [float(kept.posterior_variance[1])]
    for i in range(1, len(STEPS)):
        before = float(kept.alphas_cumprod[i - 1])
        weight = before * float(kept.betas[i] / kept.one_minus_alphas_cumprod[i]) ** 2
        error = weight * mean_squares(x_start, STEPS[i]).mean()
        variances.append(float(kept.posterior_variance[i]) + error)
    return ReverseProcess(STEPS, tuple(variances))


def exact_bits(x_start, process):
    """(n,) bits per dimension of each image, expectations in closed form or by quadrature."""
    kept = LINEAR.subset(STEPS)
    last = float(kept.alphas_cumprod[-1])
    nats = 0.5 * (last * np.square(x_start) - last - np.log1p(-last)).mean(1)
    for i in range(1, len(STEPS)):
        true, model = float(kept.posterior_variance[i]), process.variances[i]
        before = float(kept.alphas_cumprod[i - 1])
        weight = before * float(kept.betas[i] / kept.one_minus_alphas_cumprod[i]) ** 2
        error = weight * mean_squares(x_start, STEPS[i]).mean(1)
        nats += 0.5 * (np.log(model / true) - 1 + (true + error) / model)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    first = float(LINEAR.alphas_cumprod[0])
    x_1 = np.sqrt(first) * x_start[..., None] + np.sqrt(1 - first) * nodes
    spread = VARIANCES.ravel()[:, None]
    mean = np.sqrt(first) * spread / (first * spread + 1 - first) * x_1
    log_prob = discretized_normal_log_prob(
        torch.from_numpy(np.broadcast_to(x_start[..., None], mean.shape).copy()),
        torch.from_numpy(mean.clip(-1, 1)),
        torch.tensor(np.log(process.variances[0])),
    )
    nats -= (log_prob.numpy() @ weights / weights.sum()).mean(1)
    return nats / np.log(2)


@pytest.fixture(scope="module")
def coded(images):
    """The chain, a coder that holds all images twice, and of the second time the bits.

    Those of the first are borrowed, and as random as can be; later ones are of a code.
    """
    model = trained_on_normal_data(schedule=LINEAR)
    x_start = (images.pixels / 127.5 - 1).reshape(len(images), -1)
    process = process_for(x_start)
    chain = Chain(model, process, device=torch.device("cpu"), model_output=model.model_output)
    coder = Coder()
    coder.set_lanes(LANES)
    with torch.inference_mode():
        chain.encode(coder, images.pixels, None)
        before = coder.bits - 16 * coder.borrowed
        bits = chain.encode(coder, images.pixels, None)
    net = coder.bits - 16 * coder.borrowed - before
    return chain, coder, bits, net, exact_bits(x_start, process)


def test_the_length_is_the_bound(coded):
    _, _, bits, net, exact = coded
    ideal, saved = bits / DIMS
    beyond = ideal - exact
    error = beyond.std() / len(beyond) ** 0.5
    assert error < 0.001 * exact.mean()
    assert abs(beyond.mean()) < 3 * error
    assert net / DIMS / len(ideal) == pytest.approx(ideal.mean() - saved.mean(), rel=2e-4)
    assert saved.mean() < 1e-4


def test_the_pixels_and_what_was_borrowed_come_back(coded, images):
    chain, coder, *_ = coded
    coder.flush()
    other = Coder(coder.words, may_borrow=False)
    other.restore(LANES)
    with torch.inference_mode():
        for _ in range(2):
            result = chain.decode(other, images.pixels.shape, None)
            np.testing.assert_array_equal(result, images.pixels)
    other.set_lanes(0)
    assert other.is_untouched()
    assert len(other) == coder.borrowed
    assert chain.num_evaluations == 4 * len(images) * len(STEPS)


def test_start_up_is_that_of_two_timesteps(coded, images):
    chain, coder, *_ = coded
    start = 16 * coder.borrowed / images.pixels.size
    lanes = 48 * LANES / images.pixels.size
    assert start < chain.bits_of_start + lanes
    assert start > 0.7 * chain.bits_of_start


def test_a_symbol_takes_the_least_bits_that_are_promised(coded):
    chain, *_ = coded
    for grid in chain._grids:
        longest = int(np.diff(grid.p.ends).max())
        assert 32 - np.log2(longest) > module.LEAST_BITS


def test_random_bits_run_out(coded):
    chain, *_ = coded
    rng = np.random.default_rng(0)
    coder = Coder(rng.integers(0, 1 << 16, 10_000).astype(np.uint16), may_borrow=False)
    coder.restore(LANES)
    with torch.inference_mode(), pytest.raises(DamageError):
        chain.decode(coder, (400, *SHAPE), None)


def test_an_output_that_is_not_finite_is_refused(images):
    model = trained_on_normal_data(schedule=LINEAR)
    chain = Chain(
        model,
        ReverseProcess((1, 60), (1e-3, 1e-3)),
        device=torch.device("cpu"),
        model_output=lambda x_t, t, labels: x_t.float() * torch.nan,
    )
    coder = Coder()
    coder.set_lanes(8)
    with pytest.raises(InputError, match="output at t = 1 is not finite"):
        chain.encode(coder, images.pixels[:2], None)
    with pytest.raises(InputError, match="too small"):
        Chain(
            model,
            ReverseProcess((1, 60), (1e-3, 1e-30)),
            device=torch.device("cpu"),
            model_output=model.model_output,
        )
