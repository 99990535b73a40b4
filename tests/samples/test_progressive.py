"""Pictures along the chain: they show what they say, whatever the batch."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import gaussian_denoiser, log_snr_schedule, oracle_checkpoint, oracle_images

from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.terms import TermIndex, TermsPass
from ddpmbench.samples.progressive import (
    WEIGHTS,
    PicturePass,
    interpolation,
    progressive_decoding,
    progressive_generation,
)

CPU = torch.device("cpu")


@pytest.fixture
def images():
    return oracle_images(5, shape=(1, 4, 4), seed=4)


@pytest.fixture
def exact(images):
    """A model that knows the images with normal noise on them."""
    checkpoint = oracle_checkpoint(images, NoiseSchedule.linear(50), spread=0.05)
    return PicturePass(checkpoint, images, seed=3)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("labeled", [False, True])
def test_the_error_of_decoding_is_that_of_the_row(clip, labeled):
    images = oracle_images(5, shape=(3, 4, 4), num_classes=2 if labeled else 0)
    checkpoint = oracle_checkpoint(images, NoiseSchedule.linear(50), spread=0.05, clip=clip)
    image, t = [3, 1, 4], [50, 20, 7, 1]
    found = progressive_decoding(PicturePass(checkpoint, images, seed=3), image, t)
    terms = TermsPass(checkpoint, images, seed=3, decoder="exact", device=CPU)
    rows = TermIndex(np.repeat(image, 4), np.tile(t, 3), np.zeros(12, np.int64))
    name = "x_start_mse" if clip else "x_start_mse_noclip"
    of_rows = 127.5 * np.sqrt(terms.terms(rows).values[name])
    np.testing.assert_array_equal(found.rmse.flatten(), of_rows)
    assert len(set(of_rows)) == 12
    np.testing.assert_array_equal(found.x_start, images.pixels[image])
    assert list(found.image_id) == [images.ids[i] for i in image]


def test_what_decoding_shows_is_what_its_error_is_of(exact):
    found = progressive_decoding(exact, range(5), [50, 10, 1])
    off = found.pred_x_start.astype(float) - found.x_start[:, None]
    # An 8-bit picture is within half a level of what it shows.
    assert np.abs(np.sqrt(np.square(off).mean((2, 3, 4))) - found.rmse).max() <= 0.5
    # x_1 is the image with a little noise, x_T is noise.
    noise = 127.5 * exact.checkpoint.schedule.betas[0].item() ** 0.5
    off = found.x_t[:, 2].astype(float) - found.x_start
    assert noise / 2 < np.abs(off).max() < 4.5 * noise
    assert np.isin(found.x_t[:, 0], (0, 255)).mean() == pytest.approx(0.32, abs=0.15)


def test_samples_end_at_the_data_and_so_does_their_last_prediction(images):
    checkpoint = oracle_checkpoint(images, log_snr_schedule(60))
    found = progressive_generation(PicturePass(checkpoint, images), 30, [60, 20, 1])
    nearest = (found.samples[:, None] != images.pixels).sum((2, 3, 4))
    assert (nearest.min(1) == 0).all()
    assert set(nearest.argmin(1)) == set(range(5))
    np.testing.assert_array_equal(found.pred_x_start[:, -1], found.samples)
    # The first is made of noise, and is the mean of the images.
    mean = images.pixels.mean(0)
    assert np.abs(found.pred_x_start[:, 0] - mean).mean() < 15


def test_sample_i_is_of_the_class_of_image_i():
    images = oracle_images(4, num_classes=2)
    checkpoint = oracle_checkpoint(images, log_snr_schedule(40))
    found = progressive_generation(PicturePass(checkpoint, images, batch_size=4), 11, [1])
    same = (found.samples[:, None] == images.pixels).all((2, 3, 4))
    assert same.any(1).all()
    assert list(images.labels[same.argmax(1)]) == [images.labels[i % 4] for i in range(11)]


def test_mixtures_at_the_first_step_begin_and_end_with_the_images(images):
    # Data of any kind, so that the images are not told apart and the mixture is kept.
    schedule = NoiseSchedule.linear(1000)
    checkpoint = oracle_checkpoint(images, schedule, variance="fixed_small")
    network = gaussian_denoiser(torch.ones(1, 4, 4), schedule, variance="fixed_small")
    checkpoint = dataclasses.replace(checkpoint, network=network)
    pair = [(0, 3), (4, 1)]
    found = interpolation(PicturePass(checkpoint, images), pair, 1)
    np.testing.assert_array_equal(found.x_start, images.pixels[pair])
    assert tuple(found.weight) == WEIGHTS
    first, second = found.x_start[:, :1].astype(float), found.x_start[:, 1:].astype(float)
    between = found.decoded - (first + (second - first) * found.weight[:, None, None, None])
    assert np.abs(between).max() < 4.5 * 127.5 * 1e-4**0.5 + 0.5
    # Each image has a noise of its own, the same in all mixtures of a pair; pairs have their own.
    off = np.clip(found.decoded, 5, 250) == found.decoded
    noise = np.where(off.all(1, keepdims=True), between, 0)
    weight = found.weight[:, None, None, None]
    mixed = (1 - weight) * noise[:, :1] + weight * noise[:, -1:]
    assert np.abs(noise - mixed).max() <= 1.5  # levels are whole numbers
    assert np.abs(noise[:, 0] - noise[:, -1]).max() > 2
    assert np.abs(noise[0] - noise[1]).max() > 2


def test_mixtures_at_the_last_step_are_of_the_data(images):
    checkpoint = oracle_checkpoint(images, log_snr_schedule(60))
    found = interpolation(PicturePass(checkpoint, images, batch_size=5), [(0, 1), (2, 3)], 60)
    same = (found.decoded[:, :, None] == images.pixels).all((3, 4, 5))
    assert same.any(2).all()
    # From far down nothing is left of the images mixed, and from half way the end is.
    assert (same.argmax(2) == same.argmax(2)[:, :1]).all()
    near = interpolation(PicturePass(checkpoint, images), [(0, 1), (2, 3)], 25)
    np.testing.assert_array_equal(near.decoded[:, 0], near.x_start[:, 0])
    np.testing.assert_array_equal(near.decoded[:, -1], near.x_start[:, 1])


def test_a_mixture_is_of_the_class_of_the_image_that_weighs_more():
    images = oracle_images(2, num_classes=2)  # one of each class
    checkpoint = oracle_checkpoint(images, log_snr_schedule(40))
    found = interpolation(PicturePass(checkpoint, images), [(1, 0)], 40)
    same = (found.decoded[0, :, None] == images.pixels).all((2, 3, 4)).argmax(1)
    assert list(same) == [1] * 6 + [0] * 5


MAKERS = {
    "decoding": lambda run: progressive_decoding(run, range(5), [50, 25, 2]),
    "generation": lambda run: progressive_generation(run, 8, [50, 25, 2]),
    "interpolation": lambda run: interpolation(run, [(0, 1), (2, 4)], 20),
}
CALLS = {"decoding": 15, "generation": 8 * 50, "interpolation": 22 * 20}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_batch_cannot_change_a_picture(exact, kind):
    together = MAKERS[kind](dataclasses.replace(exact, batch_size=100))
    for size in (1, 3, 8):
        apart = MAKERS[kind](dataclasses.replace(exact, batch_size=size))
        for field in dataclasses.fields(together):
            one, other = getattr(apart, field.name), getattr(together, field.name)
            np.testing.assert_array_equal(one, other, err_msg=field.name)


@pytest.mark.parametrize("kind", MAKERS)
def test_progress_counts_the_calls_and_batches_are_no_larger(exact, kind):
    told, sizes = [], []
    exact.checkpoint.network.register_forward_hook(
        lambda _, inputs, __: sizes.append(len(inputs[0]))
    )
    run = dataclasses.replace(exact, batch_size=3, progress=lambda *now: told.append(now))
    MAKERS[kind](run)
    assert max(sizes) <= 3
    assert sum(sizes) == CALLS[kind]
    assert [total for _, total in told] == [CALLS[kind]] * len(sizes)
    assert [done for done, _ in told] == list(np.cumsum(sizes))


@pytest.mark.parametrize("kind", ["generation", "interpolation"])
def test_the_seed_changes_the_pictures(exact, kind):
    one, other = (MAKERS[kind](dataclasses.replace(exact, seed=seed)) for seed in (0, 1))
    name = "samples" if kind == "generation" else "decoded"
    assert (getattr(one, name) != getattr(other, name)).mean() > 0.5
