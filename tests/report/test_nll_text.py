"""The text of a bound: corrected ones, and those that are worse than sending the pixels."""

import math

import numpy as np
import pytest
from test_page import SUMMARY, page

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.likelihood.bound import BoundEstimate
from ddpmbench.likelihood.precision import Correction
from ddpmbench.report.nll_text import printed_nll
from ddpmbench.report.tables import Comparability, in_bits, summary
from ddpmbench.report.text import is_worse_than_raw_pixels, with_interval

CORRECTION = Correction(kl=-0.003, decoder=-0.007, variance=1e-7, half_width=0.004, num_terms=1000)
RECORD = {
    "bits_per_dim": -0.01372,
    "half_width": 0.00067,
    "num_evaluations": 2000,
    "uncorrected_bits_per_dim": 3.62961,
    "kl": -0.00356,
    "decoder": -0.01016,
}
LOW = {"precision": "bf16", "precision_correction": RECORD}


def of(correction, *, half_width):
    """The summary of a bound of 2 images and 3 steps."""
    parts, unknown = np.array([0.1, 0.3]), np.full(3, math.nan)
    by_timestep = (
        *("term", "term_standard_error", "x_start_mse", "eps_mse"),
        "rate_standard_error",
    )
    bound = BoundEstimate(
        prior=parts,
        kl=10 * parts,
        decoder=5 * parts,
        **dict.fromkeys(by_timestep, unknown),
        num_evaluations=np.full(3, 2),
        half_width=half_width,
        half_width_population=half_width,
    )
    values = dict.fromkeys(Comparability.__struct_fields__)
    corrected = in_bits(correction, uncorrected=bound.nats)
    values |= {"conventions": {}, "data": {}, "precision_correction": corrected}
    return summary(bound, Comparability(**values))


def test_bound_parts_and_intervals_are_corrected():
    plain, corrected = of(None, half_width=0.003), of(CORRECTION, half_width=0.003)
    moved = {name: corrected[name] - plain[name] for name in ("bits_per_dim", "kl", "decoder")}
    in_bits = {"bits_per_dim": -0.01, "kl": -0.003, "decoder": -0.007}
    assert moved == pytest.approx({k: v / NATS_PER_BIT for k, v in in_bits.items()})
    assert corrected["prior"] == plain["prior"]
    for name in ("half_width", "half_width_population"):
        assert corrected[name] == pytest.approx(0.005 / NATS_PER_BIT)  # 3, 4, 5
    record = corrected["precision_correction"]
    assert record["uncorrected_bits_per_dim"] == plain["bits_per_dim"]
    assert record["num_evaluations"] == 2000
    assert plain["precision_correction"] is None


def test_an_interval_that_is_not_known_stays_so():
    assert of(CORRECTION, half_width=None)["half_width"] is None


def test_a_chain_that_does_not_end_in_noise_is_said():
    quiet, said = (printed_nll({**SUMMARY, "prior": prior}, "table") for prior in (0.0999, 0.1))
    (line,) = (line for line in said.splitlines() if "far from the normal prior" in line)
    assert line.startswith("prior       0.1000 bits/dim")
    assert "far from the normal prior" not in quiet


def test_it_is_said_with_what_it_does_not_reach():
    printed = printed_nll({**SUMMARY, **LOW}, "table")
    of_page = page(**LOW)
    for text in (printed, of_page):
        assert (
            "bf16, corrected by -0.01372 +- 0.00067 from 1,000 terms also computed in fp32" in text
        )
        assert "are in bf16, uncorrected" in text
    plain = page()
    for word in ("corrected", "uncorrected"):
        assert word not in plain


@pytest.mark.parametrize(("bound", "is_worse"), [(6.5, True), (6.1, False), (8.1, True)])
def test_padded_images_are_held_against_their_own_pixels(bound, is_worse):
    padding = {"from": [28, 28], "to": [32, 32], "value": 0}
    of = {"bits_per_dim": bound, "half_width": 0.01, "conventions": {}, "data": {}}
    assert is_worse_than_raw_pixels(of) == (bound > 8)
    of["data"] = {"padding": padding}
    assert is_worse_than_raw_pixels(of) == is_worse


@pytest.mark.parametrize(
    ("estimator", "sampling", "words"),
    [
        ("every-pair", {"draws": 1}, "1 draw"),
        ("every-pair", {"draws": 2}, "2 draws"),
        ("importance", {"num_replicates": 1}, "1 replicate"),
        ("importance", {"num_replicates": 2, "num_sampled_images": 1}, "2 replicates of 1 image"),
    ],
)
def test_one_of_a_thing_is_singular(estimator, sampling, words):
    of = {"estimator": estimator, "sampling": sampling, "num_evaluations": 1}
    text = printed_nll({**SUMMARY, **of}, "table")
    assert f"{estimator}, {words}, 1 network evaluation, seed 0" in text


@pytest.mark.parametrize(
    ("half_width", "text"),
    [
        (18.84, "+1.2 +- 18.8"),
        (0.0153, "+1.2346 +- 0.0153"),
        (0.000096, "+1.23457 +- 0.00010"),
        (0.00004, "+1.23457 +- 0.00004"),
        (3e-9, "+1.234567890 +- 0.000000003"),
        (0.0, "+1.2346 +- 0.0000"),
    ],
)
def test_an_interval_of_some_width_never_reads_as_none(half_width, text):
    assert with_interval(1.23456789, half_width, sign="+") == text
