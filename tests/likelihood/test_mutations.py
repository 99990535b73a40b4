"""Mistakes that evaluations of this kind have made, planted one by one: a law must break.

Every law here holds in the package as it is (`test_the_laws_hold`), so that what makes it fail is
the mistake.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from laws import (
    check_decoder_known_answers,
    check_estimate_is_the_brute_force_mean,
    check_finite_set_bound,
    check_finite_set_rate,
    check_finite_set_with_short_chain,
    check_fixed_large_constant,
    check_gaussian_entropy,
    check_gaussian_fixed_gaps,
    check_noise_is_fresh,
    check_prior_known_answers,
    check_respaced,
    check_rows,
    check_rows_in_ranges,
    check_schedule_digits,
    check_terms_do_not_depend_on_the_range,
    check_uniform_levels_cost_their_logarithm,
)
from torch import Tensor
from traces import SLICE, check_trace, load_trace

from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import GaussianDiffusion
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood import bound, terms


def recorded_network() -> None:
    check_trace(load_trace(SLICE))


def gaussian_entropy() -> None:
    check_gaussian_entropy(100)


def rows() -> None:
    check_rows(variance="fixed_large")


LAWS = {
    "recorded network": recorded_network,
    "decoder's known answers": check_decoder_known_answers,
    "prior's known answers": check_prior_known_answers,
    "constant of fixed_large": check_fixed_large_constant,
    "digits of the schedule": check_schedule_digits,
    "entropy of Gaussian data": gaussian_entropy,
    "gaps of fixed variances": check_gaussian_fixed_gaps,
    "log of the size of a finite set": check_finite_set_bound,
    "log of the size as steps grow": check_finite_set_rate,
    "short chain": check_finite_set_with_short_chain,
    "rows of a second implementation": rows,
    "respaced model": check_respaced,
    "fresh noise": check_noise_is_fresh,
    "rows in other ranges": check_rows_in_ranges,
    "terms in other ranges": check_terms_do_not_depend_on_the_range,
    "log of the number of levels": check_uniform_levels_cost_their_logarithm,
    "brute force mean": check_estimate_is_the_brute_force_mean,
}

Patch = pytest.MonkeyPatch
MISTAKES: list[tuple[Callable[[Patch], None], tuple[str, ...]]] = []


def caught_by(*laws: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """List a mistake with the laws that catch it, every one of them."""

    def add(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MISTAKES.append((plant, laws))
        return plant

    return add


def change_first_entry(monkeypatch: Patch, table: str, value: Callable[[NoiseSchedule], Tensor]):
    original = GaussianDiffusion.__dict__["_tables"].func

    def tables(self: GaussianDiffusion):
        result = {name: of.clone() for name, of in original(self).items()}
        result[table][0] = value(self.schedule)
        return result

    monkeypatch.setattr(GaussianDiffusion, "_tables", property(tables))


@caught_by("recorded network", "decoder's known answers", "rows of a second implementation")
def beta_1_as_the_variance_of_the_decoder(monkeypatch):
    change_first_entry(monkeypatch, "fixed_large_log_variance", lambda s: s.betas[0].log())


@caught_by("recorded network", "decoder's known answers")
def posterior_variance_clamped_at_1e_20_instead_of_replaced(monkeypatch):
    floor = torch.tensor(1e-20, dtype=torch.float64).log()
    change_first_entry(monkeypatch, "posterior_log_variance_clipped", lambda s: floor)


def change_time(monkeypatch: Patch, change: Callable[[Tensor, Checkpoint], Tensor]) -> None:
    original = Checkpoint.network_time
    monkeypatch.setattr(Checkpoint, "network_time", lambda c, t: original(c, change(t, c)))


@caught_by("rows of a second implementation", "log of the size of a finite set", "respaced model")
def network_told_the_time_in_reverse(monkeypatch):
    change_time(monkeypatch, lambda t, c: c.schedule.num_timesteps + 1 - t)


@caught_by("rows of a second implementation", "respaced model", "brute force mean")
def network_told_the_time_before(monkeypatch):
    change_time(monkeypatch, lambda t, c: (t - 1).clamp_min(1))


@caught_by("rows of a second implementation", "respaced model", "brute force mean")
def network_told_the_time_after(monkeypatch):
    change_time(monkeypatch, lambda t, c: (t + 1).clamp_max(c.schedule.num_timesteps))


@caught_by("recorded network", "entropy of Gaussian data")
def coefficients_of_the_step_before(monkeypatch):
    original = GaussianDiffusion.__dict__["_tables"].func

    def tables(self: GaussianDiffusion):
        return {name: torch.cat([of[:1], of[:-1]]) for name, of in original(self).items()}

    monkeypatch.setattr(GaussianDiffusion, "_tables", property(tables))


@caught_by("fresh noise", "rows of a second implementation")
def one_noise_for_all_steps(monkeypatch):
    original = terms.normal_noise
    monkeypatch.setattr(
        terms,
        "normal_noise",
        lambda image, t, draw, **k: original(image, torch.ones_like(t), draw, **k),
    )


@caught_by("fresh noise", "rows of a second implementation")
def one_noise_for_all_images(monkeypatch):
    original = terms.normal_noise
    monkeypatch.setattr(
        terms,
        "normal_noise",
        lambda image, t, draw, **k: original(torch.zeros_like(image), t, draw, **k),
    )


@caught_by("fresh noise")
def antithetic_draws(monkeypatch):
    original = terms.normal_noise

    def noise(image: Tensor, t: Tensor, draw: Tensor, **k: object) -> Tensor:
        sign = 1 - 2 * (draw % 2)
        return original(image, t, draw // 2, **k) * sign[:, None, None, None]

    monkeypatch.setattr(terms, "normal_noise", noise)


@caught_by("decoder's known answers", "prior's known answers", "recorded network")
def nats_reported_as_bits(monkeypatch):
    monkeypatch.setattr(terms, "NATS_PER_BIT", 1.0)


def change_pixels(monkeypatch: Patch, change: Callable[[Tensor], Tensor]) -> None:
    original = terms.TermsPass._x_start
    monkeypatch.setattr(
        terms.TermsPass, "_x_start", lambda self, image: change(original(self, image))
    )


@caught_by("rows of a second implementation", "log of the size of a finite set")
def images_flipped(monkeypatch):
    change_pixels(monkeypatch, lambda x: x.flip(3))


@caught_by("rows of a second implementation", "brute force mean")
def images_shuffled(monkeypatch):
    original = terms.TermsPass._x_start

    def shuffled(self: terms.TermsPass, image: np.ndarray) -> Tensor:
        return original(self, (image + 1) % len(self.images))

    monkeypatch.setattr(terms.TermsPass, "_x_start", shuffled)


@caught_by("rows of a second implementation")
def pixels_divided_by_128(monkeypatch):
    change_pixels(monkeypatch, lambda x: (x + 1) * 127.5 / 128 - 1)


def change_estimate(monkeypatch: Patch, change: Callable[..., bound.BoundEstimate]) -> None:
    original = bound.estimate_bound

    def estimate(design: object, prior: np.ndarray, tables: Iterable[terms.TermTable]):
        tables = list(tables)
        return change(original(design, prior, tables), tables)

    monkeypatch.setattr(bound, "estimate_bound", estimate)


@caught_by("brute force mean")
def mean_of_the_means_of_batches(monkeypatch):
    # The last batch is short and counts as much as the others.
    def change(estimate: bound.BoundEstimate, tables: list[terms.TermTable]):
        mean = np.mean([table.values["nats"].mean() for table in tables])
        error = mean * len(estimate.term) - estimate.term.sum()
        return dataclasses.replace(estimate, kl=estimate.kl + error)

    change_estimate(monkeypatch, change)


@caught_by("brute force mean")
def last_batch_dropped(monkeypatch):
    def change(estimate: bound.BoundEstimate, tables: list[terms.TermTable]):
        tables = tables[:-1] or tables
        kept = np.concatenate([table.values["nats"] for table in tables])
        images = np.concatenate([table.index.image for table in tables])
        draws = int(estimate.num_evaluations[0]) // len(estimate.prior)
        total = np.bincount(images, kept, minlength=len(estimate.prior)) / draws
        return dataclasses.replace(estimate, kl=total - estimate.decoder)

    change_estimate(monkeypatch, change)


@caught_by("short chain", "brute force mean")
def prior_left_out(monkeypatch):
    change_estimate(
        monkeypatch,
        lambda estimate, _: dataclasses.replace(estimate, prior=np.zeros_like(estimate.prior)),
    )


@caught_by("brute force mean")
def decoder_left_out(monkeypatch):
    change_estimate(
        monkeypatch,
        lambda estimate, _: dataclasses.replace(estimate, decoder=np.zeros_like(estimate.decoder)),
    )


@caught_by("digits of the schedule")
def schedule_in_float32(monkeypatch):
    original = NoiseSchedule.from_betas.__func__

    def from_betas(cls: type[NoiseSchedule], betas: object, **k: str) -> NoiseSchedule:
        return original(cls, torch.as_tensor(betas).float().double(), **k)

    monkeypatch.setattr(NoiseSchedule, "from_betas", classmethod(from_betas))


@caught_by("digits of the schedule", "entropy of Gaussian data")
def cumulative_products_in_float32(monkeypatch):
    def log_alphas_cumprod(self: NoiseSchedule) -> Tensor:
        return (1 - self.betas.float()).cumprod(0).log().double()

    monkeypatch.setattr(NoiseSchedule, "log_alphas_cumprod", property(log_alphas_cumprod))


@caught_by("recorded network", "rows of a second implementation")
def clip_left_off(monkeypatch):
    original = GaussianDiffusion.p_mean_variance
    monkeypatch.setattr(
        GaussianDiffusion,
        "p_mean_variance",
        lambda self, *a: original(dataclasses.replace(self, clip=False), *a),
    )


@caught_by("rows in other ranges", "log of the number of levels")
def bins_of_256_levels_on_the_unit_range(monkeypatch):
    monkeypatch.setattr(DataRange, "half_bin", 1 / 255)


@caught_by("rows in other ranges", "log of the number of levels")
def bins_a_half_too_wide(monkeypatch):
    half_bin = DataRange.half_bin.fget
    monkeypatch.setattr(DataRange, "half_bin", property(lambda self: 1.5 * half_bin(self)))


@caught_by("rows in other ranges", "terms in other ranges")
def clip_to_the_unit_range(monkeypatch):
    monkeypatch.setattr(DataRange, "clamp", lambda self, x: x.clamp(-1, 1))


@caught_by("rows in other ranges", "log of the number of levels")
def images_on_the_unit_range(monkeypatch):
    monkeypatch.setattr(
        terms.TermsPass,
        "_x_start",
        lambda self, pixels: UNIT_RANGE.to_model(pixels, self.diffusion.dtype),
    )


@caught_by("rows in other ranges", "log of the number of levels")
def range_left_out_of_the_process(monkeypatch):
    monkeypatch.setattr(
        Checkpoint,
        "diffusion",
        property(lambda of: GaussianDiffusion(of.schedule, of.prediction, of.variance, of.clip)),
    )


@caught_by("rows in other ranges")
def levels_by_rounding_and_not_by_their_top_bits(monkeypatch):
    def to_model(self: DataRange, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        share = (pixels.to(dtype) / 255 * (self.levels - 1)).round() / (self.levels - 1)
        return self.low + share * (self.high - self.low)

    monkeypatch.setattr(DataRange, "to_model", to_model)


@caught_by("respaced model")
def respaced_taken_for_full(monkeypatch):
    monkeypatch.setattr(NoiseSchedule, "respaced", lambda self, num_timesteps: self)


@caught_by("respaced model")
def respaced_network_told_its_own_steps(monkeypatch):
    original = NoiseSchedule.respaced

    def respaced(self: NoiseSchedule, num_timesteps: int) -> NoiseSchedule:
        steps = torch.arange(1, num_timesteps + 1)
        return dataclasses.replace(original(self, num_timesteps), original_timesteps=steps)

    monkeypatch.setattr(NoiseSchedule, "respaced", respaced)


@caught_by("respaced model")
def respaced_by_picking_betas(monkeypatch):
    original = NoiseSchedule.respaced

    def respaced(self: NoiseSchedule, num_timesteps: int) -> NoiseSchedule:
        result = original(self, num_timesteps)
        return dataclasses.replace(result, betas=self.betas[result.original_timesteps - 1])

    monkeypatch.setattr(NoiseSchedule, "respaced", respaced)


@caught_by("recorded network", "entropy of Gaussian data", "constant of fixed_large")
def divergence_the_wrong_way_round(monkeypatch):
    original = terms.normal_kl
    monkeypatch.setattr(terms, "normal_kl", lambda m1, v1, m2, v2: original(m2, v2, m1, v1))


@caught_by("recorded network", "decoder's known answers", "brute force mean")
def sum_for_mean_over_an_image(monkeypatch):
    monkeypatch.setattr(terms, "_mean", lambda x: x.flatten(1).sum(1))


@pytest.mark.parametrize("law", LAWS)
def test_the_laws_hold(law):
    LAWS[law]()


@pytest.mark.parametrize(
    ("plant", "law"), [(plant, law) for plant, laws in MISTAKES for law in laws]
)
def test_a_planted_mistake_breaks_a_law(plant, law, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        LAWS[law]()
