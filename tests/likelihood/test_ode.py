"""The ODE's likelihood: models of known density, the order of the solvers, planted mistakes."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from laws import RANGES
from oracles import (
    MixtureDenoiser,
    bin_log_prob,
    checkpoint_of,
    expected_terms,
    oracle_checkpoint,
    oracle_images,
)
from scipy import integrate as quadrature
from scipy.stats import norm
from torch import nn

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.continuous import ContinuousTime
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.diffusion.probability_flow import ProbabilityFlow, Solver, integrate
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.likelihood import ode
from ddpmbench.likelihood.ode import (
    Dequantization,
    KnownBound,
    OdePass,
    OdeSettings,
    estimate_ode,
    evaluations_per_image,
    log_density,
    probe_signs,
    sample_x_1,
    timesteps_of_bound,
)

CPU = torch.device("cpu")
SCHEDULE = NoiseSchedule.linear(50)  # its first beta is large enough for a = 1 to be a mistake


class Denoiser(MixtureDenoiser):
    """The best denoiser at any timestep, those between the whole ones among them."""

    @functools.cached_property
    def time(self):
        return ContinuousTime(self.schedule)

    def forward(self, x_t, time, labels=None):
        log_snr = self.time.log_snr(time.double().numpy() + 1)
        ab = torch.from_numpy(log_snr).sigmoid()
        mean, variance = self.posterior(x_t, ab, labels)
        ab = ab[:, None, None, None]
        eps = (x_t.double() - ab.sqrt() * mean) / (1 - ab).sqrt()
        output = {
            Prediction.EPSILON: eps,
            Prediction.X_START: mean,
            Prediction.V: ab.sqrt() * eps - (1 - ab).sqrt() * mean,
        }[self.prediction]
        return torch.cat([output, variance], 1) if self.variance.is_learned else output


def denoising(means, spread, *, schedule=SCHEDULE, prediction="eps", variance="fixed_small", **of):
    network = Denoiser(means, schedule, spread=spread, prediction=prediction, variance=variance)
    kinds = {"prediction": network.prediction, "variance": network.variance}
    return checkpoint_of(network, schedule, **kinds, channels=means.shape[1], **of)


SPREAD = torch.tensor([[[1e-3, 0.02], [0.3, 1.0]]], dtype=torch.float64)


def gaussian(spread=SPREAD, mean=0.0, **conventions):
    return denoising(torch.full((1, *spread.shape), mean), spread, **conventions)


def mixture(**conventions):
    means = 0.7 * torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    return denoising(means.double(), 0.1, **conventions)


def sigmas(checkpoint):
    snr = checkpoint.schedule.snr
    return float(snr[0]) ** -0.5, float(snr[-1]) ** -0.5


def transported_log_density(checkpoint, x_1):
    """(B, C, H, W) of x_1 under the exact ODE of one Gaussian and N(0, I) at x_T, by hand."""
    first, last = sigmas(checkpoint)
    network = checkpoint.network
    mean, variance = network.means[0], network.spread
    ab = checkpoint.schedule.alphas_cumprod
    growth = ((variance + last**2) / (variance + first**2)).sqrt()
    x_last = ab[-1].sqrt() * (mean + growth * (x_1 / ab[0].sqrt() - mean))
    log_p = torch.from_numpy(norm.logpdf(x_last.numpy()))
    return log_p + growth.log() + 0.5 * (ab[-1] / ab[0]).log()


def noisy(checkpoint, count=5, seed=0):
    """x_1 of data of the model."""
    generator = torch.Generator().manual_seed(seed)
    network, ab = checkpoint.network, checkpoint.schedule.alphas_cumprod[0]
    means = network.means[torch.arange(count) % len(network.means)]
    variance = ab * network.spread + 1 - ab
    noise = torch.randn(means.shape, generator=generator, dtype=torch.float64)
    return ab.sqrt() * means + variance.sqrt() * noise


def signs_of(x, count, seed=0):
    index = torch.arange(len(x))
    signs = [probe_signs(index, p, shape=tuple(x.shape[1:]), seed=seed) for p in range(count)]
    return torch.stack(signs).double()


def result_of(checkpoint, x_1, *, solver=Solver.RK4, steps=30, probes=None, labels=None):
    flow = ProbabilityFlow(checkpoint, CPU)
    return log_density(flow, x_1, solver=solver, steps=steps, labels=labels, probes=probes)


# ---- laws


def check_gaussian_density():
    """Linear denoisers: the density that the ODE has by hand, and nearly that of the data."""
    for schedule, mean in ((SCHEDULE, 0.0), (NoiseSchedule.cosine(200), 0.4)):
        checkpoint = gaussian(mean=mean, schedule=schedule)
        x_1 = noisy(checkpoint)
        expected = transported_log_density(checkpoint, x_1).flatten(1).sum(1)
        got = result_of(checkpoint, x_1, steps=40).value
        torch.testing.assert_close(got, expected, rtol=0, atol=3e-4)
    checkpoint = gaussian(torch.ones(1, 2, 2))  # x_t is N(0, I) at every t
    x_1 = noisy(checkpoint)
    expected = torch.from_numpy(norm.logpdf(x_1.numpy())).flatten(1).sum(1)
    torch.testing.assert_close(result_of(checkpoint, x_1).value, expected, rtol=0, atol=3e-4)


def log_mixture(checkpoint, u, sigma):
    """(B,) log density of u = x / a, a mixture of normals of variance spread + sigma^2."""
    network = checkpoint.network
    scale = (network.spread + sigma**2).sqrt().numpy()
    log_p = norm.logpdf(u[:, None].numpy(), network.means.numpy(), scale).sum((2, 3, 4))
    return torch.from_numpy(np.logaddexp.reduce(log_p, axis=1) - math.log(len(network.means)))


def check_mixture_density():
    """From the exact density at T the ODE leads to the exact one at timestep 1."""
    checkpoint = mixture()
    flow = ProbabilityFlow(checkpoint, CPU)
    u_1 = noisy(checkpoint, 9) / checkpoint.schedule.alphas_cumprod[0].sqrt()
    u_last, integral = ode.integrate(
        flow.field(), u_1, flow.start, flow.stop, steps=60, solver=Solver.RK4
    )
    first, last = sigmas(checkpoint)
    got = log_mixture(checkpoint, u_last, last) + integral[:, 0]
    torch.testing.assert_close(got, log_mixture(checkpoint, u_1, first), rtol=0, atol=2e-4)


def check_probes_stay_along_a_trajectory():
    """The solver's error with a probe is no larger than that of the exact divergence."""
    checkpoint = mixture()
    x_1 = noisy(checkpoint)
    exact = result_of(checkpoint, x_1, steps=40).solver_error
    one = result_of(checkpoint, x_1, steps=40, probes=signs_of(x_1, 1)).solver_error
    assert float(one.abs().max()) < 4 * float(exact.abs().max()) < 0.01


PIXELS = np.array([[[[131, 200]]], [[[0, 90]]]], dtype=np.uint8)


@functools.cache
def closed_form_bound(x_0, dequantization):
    """Expectation over q of the bound on one dimension of level x_0, nats, by quadrature."""
    checkpoint = gaussian(torch.full((1, 1, 1), 0.25))
    ab = float(checkpoint.schedule.alphas_cumprod[0])
    signal, noise = math.sqrt(ab), math.sqrt(1 - ab)
    of = checkpoint.data_range
    half = (of.high - of.low) / (of.levels - 1) / 2
    tau = signal * half / noise
    inside = norm.cdf(tau) - norm.cdf(-tau)
    log_q = {
        "decoder": norm.logpdf,
        "uniform": lambda eps: -math.log(2 * tau),
        "truncated-normal": lambda eps: norm.logpdf(eps) - math.log(inside),
    }[dequantization]
    second = checkpoint.schedule.posterior_variance[1]
    variance = float(checkpoint.network.spread.flatten()[0])

    def integrand(eps):
        x_1 = signal * x_0 + noise * eps
        log_p = transported_log_density(checkpoint, torch.tensor(x_1).reshape(1, 1, 1, 1))
        value = log_q(eps) - math.log(noise) - float(log_p.flatten()[0])
        if dequantization == "decoder":
            mean = np.clip(signal * variance / (ab * variance + noise**2) * x_1, of.low, of.high)
            scale = math.sqrt(float(second))
            value -= float(bin_log_prob(np.array(x_0), np.array(mean), scale, of))
        return math.exp(log_q(eps)) * value

    end = 8.0 if dequantization == "decoder" else tau
    return quadrature.quad(integrand, -end, end, limit=200)[0]


def check_dequantizations():
    """The mean bound over many draws of x_1 is its expectation in closed form."""
    count = 1500
    checkpoint = gaussian(torch.full((1, 1, 2), 0.25))
    pixels = np.repeat(PIXELS, count, 0)
    images = ImageSet(pixels, [str(i) for i in range(len(pixels))], "two images")
    levels = (PIXELS / 127.5 - 1).reshape(2, -1).tolist()
    for kind in Dequantization:
        settings = OdeSettings(kind, trace="exact", solver_steps=24)
        every = np.arange(len(pixels))
        parts = OdePass(checkpoint, images, settings, seed=3, device=CPU).evaluate(every)
        bound = (parts["decoder"] + parts["log_q"] - parts["log_p"]).reshape(2, count)
        expected = [np.mean([closed_form_bound(x, kind) for x in of]) for of in levels]
        solver_error = np.abs(parts["solver_error"].reshape(2, count).mean(1))
        error = 4 * bound.std(1) / math.sqrt(count) + 2 * solver_error
        assert (np.abs(bound.mean(1) - expected) < error).all(), kind
        assert (error < 0.05).all(), kind


@pytest.mark.parametrize(
    "law",
    [
        check_gaussian_density,
        check_mixture_density,
        check_probes_stay_along_a_trajectory,
        check_dequantizations,
    ],
)
def test_the_laws_hold(law):
    law()


@pytest.mark.parametrize(("solver", "steps"), [(Solver.HEUN, 120), (Solver.RK4, 50)])
def test_forward_and_back_returns_x(solver, steps):
    checkpoint = mixture()
    flow = ProbabilityFlow(checkpoint, CPU)
    u_1 = noisy(checkpoint)
    steps = {"solver": solver, "steps": steps}
    u_last, there = integrate(flow.field(), u_1, flow.start, flow.stop, **steps)
    u, back = integrate(flow.field(), u_last, flow.stop, flow.start, **steps)
    assert float((u_last - u_1).abs().max()) > 10
    torch.testing.assert_close(u, u_1, rtol=0, atol=2e-3)
    torch.testing.assert_close(back, -there, rtol=0, atol=2e-2)


# ---- solvers


@functools.cache
def of_mixture(solver, steps):
    checkpoint = mixture()
    return result_of(checkpoint, noisy(checkpoint), solver=solver, steps=steps)


@pytest.mark.parametrize(("solver", "steps"), [(Solver.HEUN, 24), (Solver.RK4, 20)])
def test_the_error_falls_with_the_order_of_the_solver(solver, steps):
    true = of_mixture(Solver.RK4, 120).value
    coarse, fine = (
        float((of_mixture(solver, n).value - true).abs().mean()) for n in (steps, 2 * steps)
    )
    assert math.log2(coarse / fine) == pytest.approx(solver.order, abs=0.3)


@pytest.mark.parametrize(("solver", "steps"), [(Solver.HEUN, 48), (Solver.RK4, 40)])
def test_richardsons_error_is_about_the_true_one(solver, steps):
    result = of_mixture(solver, steps)
    true = (result.value - of_mixture(Solver.RK4, 120).value).numpy()
    np.testing.assert_allclose(result.solver_error, true, rtol=0.3, atol=0.1 * abs(true).max())


# ---- the divergence


def test_probes_agree_with_the_exact_divergence():
    checkpoint = mixture()
    x_1 = noisy(checkpoint, 8)
    exact = result_of(checkpoint, x_1, steps=8)
    signs = signs_of(x_1, 32)
    result = result_of(checkpoint, x_1, steps=8, probes=signs)
    assert bool((exact.probe_error == 0).all())
    assert bool(((result.value - exact.value).abs() < 4 * result.probe_error).all())
    single = [result_of(checkpoint, x_1, steps=8, probes=signs[p : p + 1]) for p in range(8)]
    assert bool(single[0].probe_error.isnan().all())
    spread = torch.stack([each.value for each in single]).std(0) / math.sqrt(32)
    size = [float(errors.square().mean().sqrt()) for errors in (spread, result.probe_error)]
    assert size[0] == pytest.approx(size[1], rel=0.4)


def test_signs_are_a_function_of_seed_image_and_probe():
    index = torch.tensor([3, 0, 7])
    shape = (3, 5, 7)
    signs = probe_signs(index, 2, shape=shape, seed=1)
    assert signs.abs().eq(1).all()
    assert abs(float(signs.double().mean())) < 0.15
    assert torch.equal(signs[1:], probe_signs(index[1:], 2, shape=shape, seed=1))
    for other in (
        probe_signs(index, 1, shape=shape, seed=1),
        probe_signs(index, 2, shape=shape, seed=2),
        probe_signs(index + 1, 2, shape=shape, seed=1),
    ):
        assert 0.3 < float(other.eq(signs).double().mean()) < 0.7


def test_a_network_keeps_its_gradients():
    checkpoint = gaussian()
    checkpoint.network.weight = nn.Parameter(torch.ones(2))
    result_of(checkpoint, noisy(checkpoint), steps=2)
    assert checkpoint.network.weight.requires_grad


# ---- images


def ode_pass(checkpoint, images, seed=5, **settings):
    return OdePass(checkpoint, images, OdeSettings(**settings), seed=seed, device=CPU)


def repeated(images, count):
    """The same images with other indices, hence with noise of their own."""
    ids = [f"{name} {k}" for k in range(count) for name in images.ids]
    return ImageSet(np.concatenate([images.pixels] * count), ids, images.source)


def conditional():
    images = oracle_images(6, shape=(1, 2, 2), num_classes=2)
    trained = oracle_checkpoint(images, SCHEDULE)
    network = Denoiser(
        trained.network.means, SCHEDULE, spread=0.05, classes=trained.network.classes
    )
    return dataclasses.replace(trained, network=network), images


@pytest.mark.parametrize("trace", ["hutchinson", "exact"])
def test_an_image_does_not_depend_on_its_batch(trace):
    checkpoint, images = conditional()
    settings = {"trace": trace, "solver_steps": 8}
    whole = ode_pass(checkpoint, images, **settings).evaluate(np.arange(6))
    for part in (np.array([4]), np.array([5, 0, 3])):
        got = ode_pass(checkpoint, images, **settings).evaluate(part)
        for name in OdePass.COLUMNS:
            np.testing.assert_allclose(got[name], whole[name][part], rtol=1e-6, atol=1e-9)


def test_classes_reach_the_network():
    checkpoint, images = conditional()
    own = ode_pass(checkpoint, images, trace="exact").evaluate(np.arange(6))
    swapped = dataclasses.replace(images, labels=1 - images.labels)
    other = ode_pass(checkpoint, swapped, trace="exact").evaluate(np.arange(6))
    assert (own["log_p"] > other["log_p"] + 1).all()


@pytest.mark.parametrize("prediction", ["x_start", "v"])
@pytest.mark.parametrize("variance", ["fixed_small", "learned"])
def test_every_parameterization_has_the_same_density(prediction, variance):
    plain = mixture()
    other = mixture(prediction=prediction, variance=variance)
    x_1 = noisy(plain)
    expected, got = (result_of(c, x_1, steps=16).value for c in (plain, other))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("of", [UNIT_RANGE, *RANGES])
def test_the_density_in_every_range_of_the_data(of):
    """The parts of the bound are those of x_1 that lie in the bins of the range."""
    half = (of.high - of.low) / 2
    spread = torch.full((1, 2, 2), 0.2 * half**2)
    schedule = NoiseSchedule.from_alphas_cumprod(
        1 / (1 + half**2 / np.geomspace(1e4, 1e-4, 60)), name="scaled"
    )
    images = oracle_images(5, shape=(1, 2, 2))
    checkpoint = gaussian(spread, mean=(of.high + of.low) / 2, schedule=schedule, data_range=of)
    x_start = of.to_model(torch.from_numpy(images.pixels))
    signal = float(schedule.alphas_cumprod[0]) ** 0.5
    step = (of.high - of.low) / (of.levels - 1)
    for kind in Dequantization:
        x_1, log_q = sample_x_1(kind, checkpoint.diffusion, x_start, torch.arange(5), seed=5)
        parts = ode_pass(
            checkpoint, images, dequantization=kind, trace="exact", solver_steps=20
        ).evaluate(np.arange(5))
        expected = transported_log_density(checkpoint, x_1).flatten(1).mean(1)
        np.testing.assert_allclose(parts["log_p"], expected, rtol=0, atol=2e-3)
        np.testing.assert_allclose(parts["log_q"], log_q / 4, rtol=1e-12)
        if kind is Dequantization.DECODER:
            assert (parts["decoder"] > 0).all()
            continue
        assert (parts["decoder"] == 0).all()
        distance = (x_1 / signal - x_start).abs() / step
        assert 0.3 < float(distance.max()) <= 0.5 + 1e-12
        if kind is Dequantization.UNIFORM:
            np.testing.assert_allclose(log_q / 4, -math.log(step * signal), rtol=1e-9)


def test_the_decoder_and_its_x_1_are_those_of_the_bound():
    images = oracle_images(4, shape=(1, 2, 2))
    checkpoint = mixture()
    terms = ode.TermsPass(checkpoint, images, seed=5, decoder="exact", device=CPU)
    index = np.arange(4)
    expected = terms.terms(ode.TermIndex(index, np.ones_like(index), np.zeros_like(index)))
    got = ode_pass(checkpoint, images, solver_steps=2).evaluate(index)
    assert got["decoder"] == pytest.approx(expected.values["nats"], rel=1e-12)
    x_start = UNIT_RANGE.to_model(torch.from_numpy(images.pixels))
    x_1, _ = sample_x_1(
        Dequantization.DECODER, checkpoint.diffusion, x_start, torch.arange(4), seed=5
    )
    one = torch.ones(4, dtype=torch.int64)
    eps = normal_noise(torch.arange(4), one, 0 * one, shape=(1, 2, 2), seed=5).double()
    torch.testing.assert_close(x_1, checkpoint.diffusion.q_sample(x_start, one, eps))


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "heun", "solver_steps": 4, "probes": 3},
        {"dequantization": "uniform", "trace": "exact", "solver_steps": 2},
    ],
)
def test_evaluations_and_products_are_counted(settings):
    images = oracle_images(3, shape=(1, 2, 2))
    counted = ode_pass(mixture(), images, **settings)
    counted.evaluate(np.arange(3))
    evaluations, vjps = evaluations_per_image(OdeSettings(**settings), (1, 2, 2))
    assert (counted.num_evaluations, counted.num_vjps) == (3 * evaluations, 3 * vjps)
    of_ode = {"heun": 2 * (4 + 2), "rk4": 4 * (2 + 1)}[settings.get("solver", "rk4")]
    assert (evaluations, vjps) == (of_ode + 1 + 48, of_ode * settings.get("probes", 4))


def test_memory_does_not_grow_with_the_steps_of_the_solver():
    """Tensors that a graph holds, counted: those of a single evaluation of the network."""
    checkpoint = mixture()
    x_1 = noisy(checkpoint)

    def most_held(steps, probes):
        held, most = set(), 0

        class Saved:
            def __init__(self, tensor):
                nonlocal most
                self.tensor = tensor
                held.add(id(self))
                most = max(most, len(held))

            def __del__(self):
                held.discard(id(self))

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            result_of(checkpoint, x_1, steps=steps, probes=signs_of(x_1, probes))
        return most

    few = most_held(2, 1)
    assert few > 0
    assert most_held(16, 1) == most_held(2, 4) == few


class Convolutions(nn.Module):
    """A small network of time in float64, with no closed form."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            layers = [nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 1, 3, padding=1)]
            self.layers = nn.Sequential(*layers).double()

    def forward(self, x, time):
        time = (time.double() / 50).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.layers(torch.cat([x.double(), time], 1)) + 0.5 * x.double()


def test_an_adaptive_solver_of_scipy_finds_the_same():
    """To rtol 1e-8, with the exact divergence, by formulas of its own."""
    checkpoint = dataclasses.replace(mixture(), network=Convolutions())
    x_1 = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    time, (first, last) = ContinuousTime(SCHEDULE), sigmas(checkpoint)
    size, unit = x_1.numel(), torch.eye(x_1.numel()).double().view(-1, 1, 4, 4)

    def slope(log_sigma, state):
        sigma = math.exp(log_sigma)
        a = 1 / math.sqrt(1 + sigma**2)
        at = torch.tensor([float(time.timestep(-2 * log_sigma)) - 1])
        u = torch.from_numpy(state[:size]).view(1, 1, 4, 4).expand(size, -1, -1, -1)
        u = u.clone().requires_grad_()
        eps = checkpoint.network(a * u, at.expand(size))
        (product,) = torch.autograd.grad(eps, u, unit)  # row i of the Jacobian
        trace = float((product * unit).sum())
        return np.append(sigma * eps[0].detach().numpy().ravel(), sigma * trace)

    a_1, a_last = 1 / math.sqrt(1 + first**2), 1 / math.sqrt(1 + last**2)
    start = np.append((x_1 / a_1).numpy().ravel(), 0.0)
    ends = math.log(first), math.log(last)
    how = {"method": "DOP853", "rtol": 1e-8, "atol": 1e-10}
    end = quadrature.solve_ivp(slope, ends, start, **how).y[:, -1]
    x_last = a_last * end[:size]
    expected = norm.logpdf(x_last).sum() + size * math.log(a_last / a_1) + end[size]
    for solver, steps in ((Solver.RK4, 16), (Solver.HEUN, 32)):
        got = result_of(checkpoint, x_1, solver=solver, steps=steps)
        error, estimated = float(got.value) - expected, float(got.solver_error)
        assert abs(error) < 2 * abs(estimated) + 1e-6, solver
        assert abs(estimated) < 0.05


# ---- pairs with the variational bound


def test_the_difference_estimator_leads_to_the_ode_of_all_images():
    """From the ODE of some images and the bound of all, against the ODE of all."""
    images = oracle_images(60, shape=(1, 2, 2))
    checkpoint, count = mixture(), 15
    every = np.arange(60)
    parts = ode_pass(checkpoint, images, solver_steps=8).evaluate(every)
    ode_of_all, bound = parts["decoder"] + parts["log_q"] - parts["log_p"], parts["bound"]
    # The bound of all ten times more, each from noise and timesteps of its own.
    others = ode_pass(checkpoint, repeated(images, 11), solver_steps=2).evaluate(
        np.arange(60, 11 * 60)
    )
    means = others["bound"].reshape(10, 60).mean(1)
    error = means.std(ddof=1) / math.sqrt(len(means))
    half_width = 2.3 * error
    known = KnownBound(float(means.mean()), half_width, half_width + 1.0, 60)
    generator = np.random.default_rng(0)
    estimates = []
    for _ in range(400):
        some = generator.permutation(60)[:count]
        estimates.append(estimate_ode(ode_of_all[some], bound[some], known))
    nats = np.array([one.nats for one in estimates])
    inside = [abs(one.nats - ode_of_all.mean()) <= one.half_width for one in estimates]
    assert np.mean(inside) > 0.93
    # On average it is off by the error of the two estimates of the bound alone.
    noise = means.std(ddof=1) * math.sqrt(1 + 1 / len(means))
    assert abs(nats.mean() - ode_of_all.mean()) < 3 * noise


def test_the_bound_of_an_image_is_unbiased():
    images = oracle_images(3, shape=(1, 2, 2))
    schedule = NoiseSchedule.linear(40)
    checkpoint = oracle_checkpoint(images, schedule, spread=0.05)
    network = Denoiser(checkpoint.network.means, schedule, spread=0.05)
    continuous = dataclasses.replace(checkpoint, network=network)
    exact = expected_terms(checkpoint, images, draws=2000)
    expected = exact.prior + exact.term.sum(1)
    often = ode_pass(continuous, repeated(images, 30), solver_steps=2)
    found = often.evaluate(np.arange(90))["bound"].reshape(30, 3)
    error = found.std(0, ddof=1) / math.sqrt(30)
    assert (abs(found.mean(0) - expected) < 4 * error).all()
    assert (error < 0.1 * expected).all()


def test_timesteps_of_an_images_bound_cover_log_t_and_weigh_as_often_as_they_come():
    t, weights = timesteps_of_bound(np.arange(2000), 30, seed=1)
    assert t.min() == 2
    assert t.max() == 30
    totals = np.zeros(31)
    np.add.at(totals, t.ravel(), weights.ravel() / 2000)
    assert totals[2:] == pytest.approx(1.0, abs=0.05)
    again, _ = timesteps_of_bound(np.array([7]), 30, seed=1)
    assert (again[0] == t[7]).all()


def test_the_difference_estimator_covers_both_of_its_truths():
    """Intervals for these images and for the population, by simulation."""
    generator = np.random.default_rng(0)
    inside, inside_population, widths = 0, 0, []
    for _ in range(400):
        bound = 3 + generator.normal(size=2000)
        ode = bound - 0.3 - 0.1 * (bound - 3) + 0.1 * generator.normal(size=2000)
        pairs = generator.permutation(2000)[:100]
        noisy_bound = bound[pairs] + 0.05 * generator.normal(size=100)
        error = 0.003
        half_width = 1.96 * error
        known = KnownBound(
            bound.mean() + error * generator.normal(),
            half_width,
            1.96 * math.hypot(error, bound.std() / math.sqrt(2000)),
            2000,
        )
        got = estimate_ode(ode[pairs], noisy_bound, known)
        inside += abs(got.nats - ode.mean()) <= got.half_width
        inside_population += abs(got.nats - 2.7) <= got.half_width_population
        widths.append(got.half_width_population)
    assert 0.93 <= inside / 400 <= 0.99
    assert 0.93 <= inside_population / 400 <= 0.995
    alone = estimate_ode(ode[pairs], noisy_bound)
    assert alone.half_width is None
    assert alone.nats == ode[pairs].mean()
    assert np.mean(widths) < 0.5 * alone.half_width_population


# ---- refusals


def refusal_of(run):
    with pytest.raises(InputError) as caught:
        run()
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"solver": "euler"}, "`solver=euler`"),
        ({"trace": "full"}, "`trace=full`"),
        ({"dequantization": "none"}, "`dequantization=none`"),
        ({"solver_steps": 7}, "`solver_steps=7`"),
        ({"solver_steps": 0}, "`solver_steps=0`"),
        ({"probes": 0}, "`probes=0`"),
        ({"probes": 2, "trace": "exact"}, "`probes=2`"),
    ],
)
def test_settings_are_checked(settings, named):
    assert named in refusal_of(lambda: OdeSettings(**settings))


def test_a_divergence_that_is_not_finite_names_image_and_sigma():
    class Broken(Denoiser):
        def forward(self, x_t, time, labels=None):
            output = super().forward(x_t, time, labels)
            bad = (x_t[:, :1, :1, :1] > 0.5) & (time[:, None, None, None] > 20)
            return torch.where(bad, torch.nan, 1.0) * output

    pixels = np.full((3, 1, 2, 2), 127, dtype=np.uint8)
    pixels[1] = 255
    images = ImageSet(pixels, ["a", "bright", "c"], "three")
    checkpoint = gaussian()
    network = Broken(checkpoint.network.means, SCHEDULE, spread=SPREAD)
    broken = dataclasses.replace(checkpoint, network=network)
    message = refusal_of(lambda: ode_pass(broken, images, trace="exact").evaluate(np.arange(3)))
    assert "image bright at sigma = " in message


def test_a_network_without_gradient_is_refused():
    class Detached(Denoiser):
        @torch.no_grad()
        def forward(self, x_t, time, labels=None):
            return super().forward(x_t, time, labels)

    checkpoint = gaussian()
    network = Detached(checkpoint.network.means, SCHEDULE, spread=SPREAD)
    detached = dataclasses.replace(checkpoint, network=network)
    message = refusal_of(lambda: result_of(detached, noisy(checkpoint)))
    assert "no gradient" in message


# ---- planted mistakes


def wrong_sign(patch):
    def wrong(*args, **kwargs):
        u, integral = integrate(*args, **kwargs)
        return u, -integral

    patch.setattr(ode, "integrate", wrong)


def density_of_u(patch):
    right = log_density

    def wrong(flow, x_1, **kwargs):
        result = right(flow, x_1, **kwargs)
        log_a = 0.5 * float(flow.checkpoint.schedule.log_alphas_cumprod[0])
        return dataclasses.replace(result, value=result.value + x_1[0].numel() * log_a)

    patch.setattr(ode, "log_density", wrong)
    patch.setitem(globals(), "log_density", wrong)


def redrawn_probes(patch):
    field = ProbabilityFlow.field

    def wrong(self, *, probes=None, **kwargs):
        if probes is None:
            return field(self, probes=None, **kwargs)
        generator = torch.Generator().manual_seed(0)

        def fresh(log_sigma, u):
            signs = torch.randint(0, 2, probes.shape, generator=generator)
            return field(self, probes=2.0 * signs - 1.0, **kwargs)(log_sigma, u)

        return fresh

    patch.setattr(ProbabilityFlow, "field", wrong)


def whole_bin_for_half(patch):
    half = DataRange.half_bin.fget
    patch.setattr(DataRange, "half_bin", property(lambda self: 2 * half(self)))


@pytest.mark.parametrize(
    ("plant", "law"),
    [
        (wrong_sign, check_gaussian_density),
        (wrong_sign, check_mixture_density),
        (density_of_u, check_gaussian_density),
        (density_of_u, check_dequantizations),
        (redrawn_probes, check_probes_stay_along_a_trajectory),
        (whole_bin_for_half, check_dequantizations),
    ],
)
def test_a_planted_mistake_is_caught(plant, law, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        law()
