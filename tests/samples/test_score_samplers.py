"""Langevin, predictor-corrector, ODE and DPM-Solver++: known laws, orders, and noise of its own."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from oracles import log_snr_schedule, oracle_checkpoint, oracle_images, unit_range
from peers import SMALL_UNET, diffusers_unet
from sampled import CPU, MEAN, SHAPE, SPREAD, assert_law, checkpoint_of, sampled, steps_of

import ddpmbench as db
from ddpmbench.diffusion.continuous import ContinuousTime
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.samples import chain
from ddpmbench.samples.chain import LANGEVIN_DRAW, SAMPLE_DRAW, START
from ddpmbench.samples.progressive import INTERPOLATION_DRAW
from ddpmbench.samples.samplers import SETTINGS, USES_VARIANCE, SamplerChoice

CHOICES = [
    SamplerChoice(),
    SamplerChoice("ddim"),
    SamplerChoice("langevin", langevin_steps=2, step_size=0.5),
    SamplerChoice("predictor-corrector"),
    SamplerChoice("ode"),
    SamplerChoice("dpm-solver++"),
]
EVERY = [SamplerChoice(method) for method in SETTINGS]
NEW = [choice for choice in EVERY if choice.method not in ("ancestral", "ddim")]


def levels_of(schedule):
    """a and sigma at t = 1..T, from the betas."""
    kept = np.cumprod(1 - schedule.betas.numpy())
    return np.sqrt(kept), np.sqrt(1 / kept - 1)


# ---- Langevin dynamics


@pytest.mark.parametrize(
    ("process", "prediction"),
    [("vp", "eps"), ("vp", "v"), ("ve", "score"), ("flow", "velocity"), ("sub-vp", "x_start")],
)
def test_annealed_langevin_has_the_moments_of_its_recursion_at_every_level(process, prediction):
    sigmas, num_steps, size = np.geomspace(0.2, 3.0, 6), 3, 0.3
    schedule = NoiseSchedule.of_process(Process(process), sigmas, name="levels")
    checkpoint = checkpoint_of(schedule, prediction=prediction)
    choice = SamplerChoice("langevin", langevin_steps=num_steps, step_size=size)
    _, steps = steps_of(checkpoint, choice, torch.arange(20_000))
    data, spread = MEAN.flatten().numpy(), SPREAD.flatten().numpy()
    signal = np.append(1.0, 1 / np.sqrt(1 + sigmas**2))
    # The prior: of unit variance at the scale of the family, or that of the noise for ve.
    noise = 2 / (1 + np.sqrt(1 + 4 / sigmas[-1] ** 2))
    start = {
        "vp": np.sqrt(1 + sigmas[-1] ** 2),
        "ve": sigmas[-1],
        "flow": 1 + sigmas[-1],
        "sub-vp": 1 / np.sqrt(1 - noise),
    }[process]
    mean, variance = np.zeros(4), np.full(4, start**2)
    for step in steps:
        sigma = sigmas[step.t - 1]
        alpha = size * sigma**2
        for _ in range(num_steps):
            pull = alpha / (spread + sigma**2)
            mean = mean - pull * (mean - data)
            variance = (1 - pull) ** 2 * variance + 2 * alpha
        if step.t == 1:
            gain = spread / (spread + sigma**2)
            mean, variance = data + gain * (mean - data), gain**2 * variance
        assert_law(step.x_previous, signal[step.t - 1] * mean, signal[step.t - 1] ** 2 * variance)
    assert [step.num_evaluations for step in steps] == [3, 3, 3, 3, 3, 4]


@pytest.mark.parametrize("num_steps", [1, 2])
def test_predictor_corrector_has_the_moments_of_its_recursion_in_many_dimensions(num_steps):
    # Where the norms of an image are those of its mean square.
    mean, spread, r = torch.full((1, 40, 40), 0.3), 0.25, 0.2
    sigmas = np.geomspace(0.2, 4.0, 6)
    schedule = NoiseSchedule.of_process(Process.VE, sigmas, name="levels")
    checkpoint = checkpoint_of(schedule, mean=mean, spread=torch.full_like(mean, spread))
    choice = SamplerChoice("predictor-corrector", langevin_steps=num_steps, snr=r)
    _, steps = steps_of(checkpoint, choice, torch.arange(400))
    center, variance = 0.0, sigmas[-1] ** 2
    for step in steps:
        sigma, before = sigmas[step.t - 1], ([0.0, *sigmas])[step.t - 1]
        for _ in range(num_steps):
            score = (variance + (center - 0.3) ** 2) / (spread + sigma**2) ** 2
            alpha = 2 * r**2 / score
            pull = alpha / (spread + sigma**2)
            center, variance = (
                center - pull * (center - 0.3),
                (1 - pull) ** 2 * variance + 2 * alpha,
            )
        added = sigma**2 - before**2
        pull = added / (spread + sigma**2)
        center = center - pull * (center - 0.3)
        variance = (1 - pull) ** 2 * variance + added * before**2 / sigma**2
        u = step.x_previous * np.sqrt(1 + before**2)
        assert float(u.mean()) == pytest.approx(center, abs=0.005)
        assert float(u.var()) == pytest.approx(variance, rel=0.01)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_corrector_step_has_the_norms_of_its_own_image(num_steps):
    """Worked out again, from the noise that is addressed."""
    schedule = NoiseSchedule.linear(30)
    checkpoint = checkpoint_of(schedule)
    index, t, r = torch.arange(5), 30, 0.16
    choice = SamplerChoice("predictor-corrector", langevin_steps=num_steps)
    x_t, steps = steps_of(checkpoint, choice, index)
    signal, sigma = (of[t - 1] for of in levels_of(schedule))

    def noise(draw):
        return chain.normal_noise(
            index, torch.full_like(index, t), torch.full_like(index, draw), shape=SHAPE, seed=0
        ).double()

    u = x_t / signal
    for k in range(num_steps):
        z, score = noise(SAMPLE_DRAW + LANGEVIN_DRAW + 2 * k), -(u - MEAN) / (SPREAD + sigma**2)
        norms = [of.flatten(1).norm(dim=1)[:, None, None, None] for of in (z, score)]
        alpha = 2 * (r * norms[0] / norms[1]) ** 2
        u = u + alpha * score + (2 * alpha).sqrt() * z
    x_start = MEAN + SPREAD / (SPREAD + sigma**2) * (u - MEAN)
    before = levels_of(schedule)[1][t - 2]
    added = sigma**2 - before**2
    u = u + added / sigma**2 * (x_start - u)
    u = u + np.sqrt(added) * before / sigma * noise(SAMPLE_DRAW)
    expected = levels_of(schedule)[0][t - 2] * u
    torch.testing.assert_close(steps[0].x_previous, expected, rtol=0, atol=1e-5)


# ---- solvers


def exact(checkpoint, x_t):
    """Where the ODE leads from x_T, and the prediction of x_0 there."""
    signal, sigma = levels_of(checkpoint.schedule)
    residual = x_t / signal[-1] - MEAN
    residual = residual * ((SPREAD + sigma[0] ** 2) / (SPREAD + sigma[-1] ** 2)).sqrt()
    return MEAN + SPREAD / (SPREAD + sigma[0] ** 2) * residual


SOLVERS = {
    "heun": (lambda n: SamplerChoice("ode", solver_steps=n), (16, 32, 64), 2),
    "rk4": (lambda n: SamplerChoice("ode", solver="rk4", solver_steps=n), (4, 8, 16), 4),
    "2M": (lambda n: SamplerChoice("dpm-solver++", solver_steps=n), (32, 64, 128), 2),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process", ["vp", "flow"])
def test_the_error_of_a_solver_falls_as_its_order(name, process):
    choice, sizes, order = SOLVERS[name]
    schedule = NoiseSchedule.of_process(
        Process(process), np.geomspace(0.05, 20.0, 100), name="levels"
    )
    checkpoint, errors = checkpoint_of(schedule), []
    for size in sizes:
        x_t, steps = steps_of(checkpoint, choice(size), torch.arange(50))
        error = steps[-1].x_previous - exact(checkpoint, x_t)
        errors.append(float(error.square().mean().sqrt()))
    rates = [np.log2(one / other) for one, other in itertools.pairwise(errors)]
    assert order - 0.35 < rates[-1] < order + 0.8, (errors, rates)
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("method", ["ode", "dpm-solver++"])
def test_a_solver_at_the_timesteps_ends_where_the_ode_does(method):
    errors = []
    for number in (50, 200):
        checkpoint = checkpoint_of(NoiseSchedule.linear(1000)).respaced(number)
        x_t, steps = steps_of(checkpoint, SamplerChoice(method), torch.arange(50))
        errors.append(float((steps[-1].x_previous - exact(checkpoint, x_t)).abs().max()))
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize(("method", "number"), [("ode", 100), ("dpm-solver++", 300)])
def test_samples_of_a_solver_have_the_moments_of_the_ode(method, number):
    checkpoint = checkpoint_of(NoiseSchedule.linear(1000)).respaced(number)
    x = sampled(checkpoint, SamplerChoice(method), torch.arange(20_000))
    scale = (exact(checkpoint, torch.ones(1)) - exact(checkpoint, torch.zeros(1))).flatten()
    mean = exact(checkpoint, torch.zeros(1)).flatten()
    assert_law(x, mean.numpy(), scale.square().numpy())


@pytest.fixture(scope="module")
def diffusers_model(tmp_path_factory):
    import diffusers

    network = diffusers_unet(SMALL_UNET | {"in_channels": 3, "out_channels": 3})
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    diffusers.DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    return diffusers, network, db.load_checkpoint(folder)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of their scheduler
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("num_steps", [5, 25])
def test_images_of_dpm_solver_are_those_of_diffusers(diffusers_model, num_steps, clip):
    diffusers, network, checkpoint = diffusers_model
    more = {"thresholding": True, "sample_max_value": 1.0} if clip else {}
    theirs = diffusers.DPMSolverMultistepScheduler(num_train_timesteps=1000, **more)
    theirs.set_timesteps(num_steps)
    timesteps = [int(t) for t in theirs.timesteps]
    schedule = checkpoint.schedule.subset([t + 1 for t in reversed(timesteps)])
    model = dataclasses.replace(checkpoint, schedule=schedule, clip=clip)
    sampler = SamplerChoice("dpm-solver++").prepare(model, seed=0, device=CPU)
    index = torch.arange(4)
    start = sampler.start(index, (3, 8, 8))
    *_, last = sampler.steps(start, num_steps, sample=index)
    x = start.float()
    with torch.inference_mode():
        for t in timesteps:
            x = theirs.step(network(x, t).sample, t, x).prev_sample
    assert (last.x_previous - x).abs().max() < 1 / 255
    assert x.std() > 0.1


# ---- what every sampler keeps


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_neither_batch_nor_order_can_change_a_sample(choice):
    checkpoint = checkpoint_of(NoiseSchedule.linear(12, beta_start=0.01, beta_end=0.6))
    together = sampled(checkpoint, choice, torch.arange(7))
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    shuffled = sampled(checkpoint, choice, order)
    alone = torch.cat([sampled(checkpoint, choice, torch.tensor([i])) for i in range(7)])
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    assert (sampled(checkpoint, choice, torch.arange(7), seed=1) - together).abs().mean() > 0.05
    assert (together[1:] - together[:-1]).abs().mean() > 0.05


@pytest.mark.parametrize("choice", NEW, ids=str)
def test_a_run_that_goes_on_makes_the_samples_of_one(small_model, tmp_path, choice):
    model, settings = small_model.respaced(6), db.SampleSettings(sampler=choice)
    made = {"settings": settings, "progress": False}
    whole = db.generate_samples(model, 5, **made, batch_size=5)
    db.generate_samples(model, 2, **made, batch_size=1, out=tmp_path)
    done = []
    listener = db.RunListener(start=done.append, progress=lambda now: done.append(now.done))
    again = db.generate_samples(
        model, 5, settings=settings, batch_size=2, out=tmp_path, listener=listener
    )
    levels = again.images.pixels.astype(int) - whole.images.pixels
    assert np.abs(levels).max() <= 1
    each = choice.num_evaluations(model.schedule)
    assert done[0] == 3 * each
    assert done[-1] == 5 * each
    assert again.summary["num_evaluations"] == 5 * each
    assert again.summary["sampler"]["num_evaluations"] == each
    others = {"langevin_steps": 2, "snr": 0.1, "step_size": 0.3}
    name = next((name for name in others if name in choice.settings), None)
    if name is not None:
        other = dataclasses.replace(choice, **{name: others[name]})
        with pytest.raises(db.InputError, match=rf"holds another run.*{name}"):
            db.generate_samples(model, 5, settings=db.SampleSettings(sampler=other), out=tmp_path)


@pytest.mark.parametrize(
    "choice",
    [*CHOICES, *(SamplerChoice(method, solver_steps=7) for method in ("ode", "dpm-solver++"))],
    ids=str,
)
@pytest.mark.parametrize("process", ["ve", "flow", "sub-vp"])
def test_a_model_of_another_family_has_the_same_samples(choice, process):
    sigmas = np.geomspace(0.02, 2e4, 20)
    models = [
        checkpoint_of(NoiseSchedule.of_process(Process(name), sigmas, name="levels"))
        for name in ("vp", process)
    ]
    one, other = (sampled(model, choice, torch.arange(6)) for model in models)
    # The networks' inputs are rounded at either scale.
    torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


FAMILY_SIGNAL = {
    "vp": lambda sigma: 1 / np.sqrt(1 + sigma**2),
    "ve": lambda sigma: 1.0,
    "flow": lambda sigma: 1 / (1 + sigma),
    "sub-vp": lambda sigma: (np.sqrt(sigma**2 + 4) - sigma) / 2,
}
"""a of sigma = s / a, from a^2 + s^2 = 1, a = 1, a + s = 1, and s = 1 - a^2."""


@pytest.mark.parametrize("method", USES_VARIANCE)
@pytest.mark.parametrize("process", FAMILY_SIGNAL)
def test_fixed_large_is_the_forward_variance_of_the_family(method, process):
    sigmas, t, index = np.geomspace(0.2, 8.0, 6), 5, torch.arange(4)
    schedule = NoiseSchedule.of_process(Process(process), sigmas, name="levels")
    u = []
    for variance in ("fixed_large", "fixed_small"):
        model = checkpoint_of(schedule, variance=variance)
        sampler = SamplerChoice(method).prepare(model, seed=0, device=CPU)
        step = next(sampler.steps(torch.ones(4, *SHAPE).double(), t, sample=index))
        u.append(step.x_previous * np.sqrt(1 + sigmas[t - 2] ** 2))
    before, sigma = sigmas[t - 2], sigmas[t - 1]
    added = sigma**2 - before**2
    kept = FAMILY_SIGNAL[process](sigma) / FAMILY_SIGNAL[process](before)
    deviations = kept * np.sqrt(added), np.sqrt(added) * before / sigma
    z = chain.normal_noise(
        index, torch.full_like(index, t), torch.full_like(index, SAMPLE_DRAW), shape=SHAPE, seed=0
    ).double()
    expected = (deviations[0] - deviations[1]) * z
    torch.testing.assert_close(u[0] - u[1], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize(
    ("prediction", "variance"),
    [
        ("eps", "fixed_large"),
        ("x_start", "learned_range"),
        ("v", "learned"),
        ("previous_mean", "fixed_small"),
    ],
)
def test_samples_of_a_finite_set_are_of_the_set_and_of_their_class(choice, prediction, variance):
    images = oracle_images(6, shape=(1, 3, 3), num_classes=3, seed=2)
    model = oracle_checkpoint(
        images, log_snr_schedule(60), prediction=prediction, variance=variance
    )
    labels = torch.arange(12) % 3
    x = sampled(model, choice, torch.arange(12), labels=labels)
    distance = (x[:, None] - unit_range(images)).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-3
    assert torch.equal(torch.from_numpy(images.labels)[distance.argmin(1)], labels)


GRIDS = [
    SamplerChoice("predictor-corrector", langevin_steps=3),
    SamplerChoice("ode", solver_steps=4),
    SamplerChoice("ode", solver="rk4", solver_steps=3),
    SamplerChoice("dpm-solver++", solver_steps=4),
]


@pytest.mark.parametrize(
    ("choice", "num_timesteps"),
    [
        *((choice, number) for choice in CHOICES for number in (1, 2, 8)),
        *((choice, number) for choice in GRIDS for number in (2, 8)),
    ],
    ids=str,
)
def test_the_evaluations_that_are_stated_are_those_made(choice, num_timesteps):
    checkpoint = checkpoint_of(NoiseSchedule.cosine(num_timesteps))
    _, steps = steps_of(checkpoint, choice, torch.arange(3))
    assert steps[-1].x_previous.isfinite().all()
    stated = choice.num_evaluations(checkpoint.schedule)
    assert checkpoint.network.num_evaluations == stated
    assert sum(step.num_evaluations for step in steps) == stated
    assert [step.t for step in steps] == list(range(len(steps), 0, -1))


@pytest.fixture
def addresses(monkeypatch):
    """The (t, draw) of all noise that the sampler asks for, as often as it does."""
    asked, real = [], chain.normal_noise

    def spy(image, t, draw, **of):
        asked.append((int(t[0]), int(draw[0])))
        return real(image, t, draw, **of)

    monkeypatch.setattr(chain, "normal_noise", spy)
    return asked


@pytest.mark.parametrize(
    ("choice", "per_timestep"),
    [
        (SamplerChoice(), 1),
        (SamplerChoice(added_noise="none"), 0),
        (SamplerChoice("ddim"), 0),
        (SamplerChoice("ddim", eta=1.0), 1),
        (SamplerChoice("langevin", langevin_steps=4), 4),
        (SamplerChoice("predictor-corrector", langevin_steps=3), 4),
        (SamplerChoice("ode"), 0),
        (SamplerChoice("dpm-solver++"), 0),
    ],
    ids=str,
)
def test_no_noise_is_used_twice(addresses, choice, per_timestep):
    checkpoint = checkpoint_of(NoiseSchedule.linear(30))
    sampled(checkpoint, choice, torch.arange(2))
    assert len(addresses) == len(set(addresses)) == 1 + 30 * per_timestep
    assert addresses[0] == (START, SAMPLE_DRAW)
    if per_timestep == 1:
        assert set(addresses[1:]) == {(t, SAMPLE_DRAW) for t in range(1, 31)}
    langevin = {draw for _, draw in addresses} - {SAMPLE_DRAW}
    assert not langevin & {INTERPOLATION_DRAW}
    assert max(draw for _, draw in addresses) < 2**32
    # A chain of another draw has none of them: its draw is odd where theirs is even.
    assert all((draw - SAMPLE_DRAW) % 2 == 0 for draw in langevin)
    assert (INTERPOLATION_DRAW - SAMPLE_DRAW) % 2 == 1


def test_what_diverges_is_refused_with_its_own_remedy():
    checkpoint = checkpoint_of(NoiseSchedule.linear(30))
    checkpoint.network.spread = torch.full_like(SPREAD, -1e9).double()
    checkpoint.network.mean = torch.full_like(MEAN, torch.nan)
    with pytest.raises(db.InputError, match=r"not finite after timestep t = 30; .*`step_size`"):
        sampled(checkpoint, SamplerChoice("langevin"), torch.arange(2))


def test_what_diverges_between_timesteps_is_named_by_its_step():
    checkpoint = checkpoint_of(NoiseSchedule.linear(1000))
    predicted, calls = checkpoint.network.forward, itertools.count(1)
    # two evaluations a step
    checkpoint.network.forward = lambda *of: predicted(*of) * (torch.nan if next(calls) > 4 else 1)
    with pytest.raises(db.InputError, match=r"not finite after step 3 of 7; .*`solver_steps`"):
        sampled(checkpoint, SamplerChoice("ode", solver_steps=6), torch.arange(2))


class Zero(torch.nn.Module):
    def forward(self, x_t, time):
        return torch.zeros_like(x_t)


def test_a_corrector_of_a_network_that_predicts_no_noise_is_refused_with_its_cause():
    checkpoint = checkpoint_of(NoiseSchedule.linear(30))
    checkpoint = dataclasses.replace(checkpoint, network=Zero())
    sampler = SamplerChoice("predictor-corrector").prepare(checkpoint, seed=0, device=CPU)
    index = torch.arange(2)
    words = "t = 30; choose a smaller `snr`, or check that the network does not predict noise of 0"
    with pytest.raises(db.InputError, match=words):
        list(sampler.steps(sampler.start(index, SHAPE), 30, sample=index))


# ---- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "euler"}, "`sampler=euler`: choose ancestral, ddim, langevin,"),
        ({"method": "ddim", "eta": 1.5}, "`eta=1.5`: give a number from 0 to 1"),
        ({"method": "ddim", "eta": float("nan")}, "`eta=nan`"),
        ({"method": "ddim", "eta": "0.5"}, "`eta='0.5'`: give a number"),
        ({"method": "ddim", "added_noise": "none"}, "`added_noise=none`: applies only to"),
        ({"added_noise": "some"}, "`added_noise=some`: choose inner, every-step or none"),
        ({"snr": 0.1}, "`snr=0.1`: applies only to `sampler=predictor-corrector`; leave it out"),
        (
            {"method": "ddim", "solver_steps": 3},
            r"only to `sampler=ode` and `sampler=dpm-solver\+\+`",
        ),
        ({"method": "langevin", "eta": 0.0}, "`eta=0.0`: applies only to `sampler=ddim`"),
        ({"method": "ode", "step_size": 0.1}, "`step_size=0.1`: applies only to"),
        ({"method": "langevin", "step_size": 1.5}, "`step_size=1.5`: give a number from 0 to 1"),
        ({"method": "langevin", "step_size": 0}, "`step_size=0`: must be positive"),
        ({"method": "langevin", "langevin_steps": 0}, "`langevin_steps=0`: give a whole number"),
        ({"method": "predictor-corrector", "snr": float("nan")}, "`snr=nan`: must be positive"),
        ({"method": "predictor-corrector", "snr": 1e300}, "`snr=1e.300`: give a number from 0 to"),
        ({"method": "ode", "solver": "euler"}, "`solver=euler`: choose heun or rk4"),
        ({"method": "ode", "solver": "rk4"}, "`solver=rk4`: .* choose `solver_steps`"),
        ({"method": "ode", "solver_steps": 2.0}, "`solver_steps=2.0`: give a whole number"),
    ],
)
def test_settings_that_a_sampler_has_not_are_refused(settings, words):
    with pytest.raises(db.InputError, match=words):
        SamplerChoice(**settings)


def test_a_grid_between_timesteps_needs_a_model_that_has_them(small_model):
    grid = db.SampleSettings(sampler=SamplerChoice("ode", solver_steps=3))
    with pytest.raises(db.InputError, match="`solver_steps=3`: is a grid over all 40 timesteps"):
        db.generate_samples(small_model.respaced(5), 2, settings=grid)
    single = checkpoint_of(NoiseSchedule.cosine(1))
    with pytest.raises(db.InputError, match="`solver_steps=3`: the model has a single timestep"):
        grid.sampler.prepare(single, seed=0, device=CPU)
    # A network with a table of timesteps takes whole ones, and no nearest is chosen silently.
    images = oracle_images(2, shape=(1, 4, 4))
    whole = oracle_checkpoint(images, NoiseSchedule.linear(40))
    with pytest.raises(db.InputError, match=r"between its timesteps: it rounds.*`solver_steps`"):
        db.generate_samples(whole, 2, settings=grid)
    at_timesteps = db.SampleSettings(sampler=SamplerChoice("ode"))
    assert len(db.generate_samples(whole, 2, settings=at_timesteps, progress=False).images) == 2


def test_an_even_grid_is_even_in_log_sigma():
    checkpoint = checkpoint_of(NoiseSchedule.linear(1000))
    times, network = [], checkpoint.network.forward
    checkpoint.network.forward = lambda x, t: times.append(float(t[0])) or network(x, t)
    sampled(checkpoint, SamplerChoice("dpm-solver++", solver_steps=6), torch.arange(2))
    log_snr = checkpoint.schedule.log_snr
    expected = np.linspace(float(log_snr[-1]), float(log_snr[0]), 7)
    np.testing.assert_allclose(times, expected, rtol=1e-5)
    time = ContinuousTime(checkpoint.schedule)
    assert (time.timestep(expected[1:-1]) % 1 > 0).all()
