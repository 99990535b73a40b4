import itertools

import pytest
import torch

from ddpmbench.diffusion.process import GaussianDiffusion
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.train.objectives import sliced_loss, training_loss, twice_differentiable
from ddpmbench.unet.unet import Attention, UNetConfig

T = 10
PIXELS = (1, 2, 2)


@pytest.fixture(
    params=[NoiseSchedule.linear(1000).respaced(T), NoiseSchedule.variance_exploding(T)],
    ids=["vp", "ve"],
)
def diffusion(request):
    return GaussianDiffusion(request.param)


def network(x_t):
    """Noise of a batch: not linear, and each pixel depends on all."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(4, 4, generator=generator, dtype=x_t.dtype)
    return torch.tanh(x_t.flatten(1) @ matrix.T).reshape(x_t.shape)


def batch(diffusion, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_start = 0.5 * torch.randn(size, *PIXELS, generator=generator, dtype=torch.float64)
    eps = torch.randn(size, *PIXELS, generator=generator, dtype=torch.float64)
    t = torch.randint(1, T + 1, (size,), generator=generator)
    return x_start, t, eps, diffusion.q_sample(x_start, t, eps).requires_grad_()


def test_sliced_score_matching_is_the_exact_trace_on_average(diffusion):
    _, t, _, x_t = batch(diffusion, 5)
    slices = [
        sliced_loss(diffusion, x_t, t, network(x_t), probe.expand_as(x_t))
        for signs in itertools.product((-1.0, 1.0), repeat=4)
        for probe in [torch.tensor(signs, dtype=torch.float64).reshape(PIXELS)]
    ]
    noise = diffusion.schedule.one_minus_alphas_cumprod.sqrt()[t - 1]
    exact = []
    for x, s in zip(x_t, noise, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: network(x[None])[0], x)
        trace = jacobian.reshape(4, 4).trace()
        exact.append(1 + (network(x[None]).square().sum() - 2 * s * trace) / 4)
    torch.testing.assert_close(torch.stack(slices).mean(), torch.stack(exact).mean())


def test_sliced_and_denoising_score_matching_agree_in_expectation(diffusion):
    x_start, t, eps, x_t = batch(diffusion, 40_000, seed=1)
    generator = torch.Generator().manual_seed(2)
    probe = torch.randint(2, x_t.shape, generator=generator).double() * 2 - 1
    output = network(x_t)
    parts = [slice(first, first + 400) for first in range(0, len(t), 400)]
    differences = []
    for part in parts:
        x = x_t[part].detach().requires_grad_()
        sliced = sliced_loss(diffusion, x, t[part], network(x), probe[part])
        simple = training_loss("simple", diffusion, x_start[part], t[part], eps[part], output[part])
        differences.append((sliced - simple).detach())
    difference = torch.stack(differences)
    error = difference.std() / len(parts) ** 0.5
    assert error < 0.02
    assert abs(difference.mean()) < 3 * error


def test_attention_can_be_differentiated_twice():
    config = UNetConfig(1, 1, 8, (8,), 1, (True,), norm_groups=4)
    attention = Attention(config, 8)
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    with twice_differentiable():
        output = attention(x)
    (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    gradient.sum().backward()
    assert x.grad is not None
    assert all(weight.grad.isfinite().all() for weight in attention.parameters())
