"""The printed scores: their names, their protocol, and what they are of."""

import io
import json
import re

import pandas as pd
import pytest
from fidelity_folders import HASH, of_another_network, reference, summary

from ddpmbench.execution.features import Cost
from ddpmbench.metrics.scores import Scores
from ddpmbench.report.fid import (
    AGAINST_REFERENCE,
    METRICS,
    comparable_only,
    fid_facts,
    headline,
    printed_fid,
    scores,
)
from ddpmbench.report.text import cost_lines

TWO = [reference(), reference("fashion-mnist:train", fid=3.25, fid_infinity=2.5)]
NAME = f"FD[{HASH[:12]}]"


def cells(text, measure):
    """The columns of the rows of this name."""
    rows = [re.split(r" {2,}", line) for line in text.splitlines()]
    return [row[1:] for row in rows if row[0] == measure]


def test_every_score_that_is_computed_is_in_the_table_of_metrics():
    assert set(Scores(None, None, None, None).estimates) == set(AGAINST_REFERENCE)


@pytest.mark.parametrize(
    ("whole", "text"),
    [
        (summary(), "FID 12.34 +- 0.21 (clean)"),
        (summary(fid_half_width=None), "FID 12.34 (clean)"),
        (summary(protocol=summary()["protocol"] | {"id": "ddpm"}), "FID 12.34 +- 0.21 (ddpm)"),
        (summary(TWO), "FID 12.34 +- 0.21 (clean) against fashion-mnist:test"),
        (of_another_network(summary()), f"{NAME} 12.34 +- 0.21 (clean)"),
    ],
)
def test_a_distance_is_never_printed_without_its_name_and_protocol(whole, text):
    assert headline(whole) == text


def test_every_metric_has_a_row_with_its_interval_for_each_reference():
    text, test, train = printed_fid(summary(TWO), "table"), *(of["source"] for of in TWO)
    expected = {
        "FID": [["12.34 +- 0.21", test], ["3.25 +- 0.21", train]],
        "FID-infinity": [["11.90 +- 0.25", test], ["2.50 +- 0.25", train]],
        "KID x 1000": [["4.230 +- 0.310", test], ["4.230 +- 0.310", train]],
        "precision": [["0.710 +- 0.081", test], ["0.710 +- 0.081", train]],
        "recall": [["0.480 +- 0.030", test], ["0.480 +- 0.030", train]],
        "inception score": [["9.12 +- 0.11", "no reference; 10 splits"]],
    }
    assert {name: cells(text, name) for name in expected} == expected
    assert {of.label for of in scores(summary(TWO))} == set(expected)
    assert len(scores(summary())) == len(METRICS) - 1  # that of the headline has no row


def test_a_score_of_another_network_is_nowhere_called_fid():
    whole = of_another_network(summary(TWO))
    text = printed_fid(whole, "table")
    for row in text.split("\n\n")[1].splitlines()[1:]:
        assert f"[{HASH[:12]}]" in row
        assert not re.search(r"FID|inception", row)
    assert cells(text, f"{NAME}-infinity")
    assert cells(text, f"class score [{HASH[:12]}]")
    (line,) = (line for line in text.splitlines() if "is not FID" in line)
    assert line.startswith(NAME)
    assert "the same network" in line
    assert comparable_only(summary()) is None


def test_what_is_not_known_is_said_to_be_unknown():
    nothing = dict.fromkeys(("precision", "precision_half_width", "recall", "recall_half_width"))
    of = summary([reference(**nothing)], inception_score=None, inception_score_half_width=None)
    of["protocol"] |= {"inception_splits": None, "inception_order": None}
    text = printed_fid(of, "table")
    for measure in ("precision", "recall", "inception score"):
        assert cells(text, measure)[0][0] == "unknown"
    assert "None" not in text


ELSEWHERE = {
    "checkpoint": None,
    "sampler": None,
    "num_evaluations": None,
    "seed": None,
    "samples": {**summary()["samples"], "source": "theirs", "skipped": 3},
}


@pytest.mark.parametrize(
    ("changes", "words", "absent"),
    [
        (
            {},
            [
                "120 of samples.npz",
                "10,000 of fashion-mnist:test",
                "default (native, f6215dda321f)",
                "ancestral, T = 100 of 1,000, fixed_large, clip, 12,000 network evaluations, "
                "seed 0",
                "resize clean, round to 8 bits, gray repeated",
                "10 splits (file order), KID of 100 x 1,000, 3 neighbors",
                f"inception-2015-12-05 ({HASH[:12]}), 2,048 features",
                "cpu, 2 threads, fp32, 412 s",
                summary()["protocol"]["dtype"],
            ],
            [],
        ),
        (ELSEWHERE, ["120 of theirs (abababababab); 3 skipped"], ["sampler", "checkpoint"]),
    ],
)
def test_everything_that_makes_a_score_comparable_is_printed(changes, words, absent):
    text = printed_fid(summary(**changes), "table")
    assert [word for word in words if word not in text] == []
    assert [word for word in absent if word in text] == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "ddim", "eta": 0.5, "variance": None}, "ddim, T = 100 of 1,000, eta 0.5, clip"),
        ({"added_noise": "none", "clip": False}, "fixed_large, no added noise, no clip"),
        ({"num_timesteps": 1000, "labels": "i mod 10"}, "T = 1,000, fixed_large, clip, classes: i"),
    ],
)
def test_a_sampler_is_said_in_words(change, expected):
    whole = summary()
    sampler = whole["sampler"] | change
    assert expected in dict(fid_facts(whole | {"sampler": sampler}))["sampler"]


def test_the_other_formats_hold_the_same_numbers():
    whole = summary(TWO)
    assert json.loads(printed_fid(whole, "json")) == whole
    assert float(printed_fid(whole, "quiet")) == whole["fid"]
    table = pd.read_csv(io.StringIO(printed_fid(whole, "csv")))
    assert list(table.reference) == ["fashion-mnist:test", "fashion-mnist:train"]
    assert list(table.fid) == [12.34, 3.25]
    assert list(table["protocol.feature_network.sha256"]) == [HASH] * 2
    assert list(table.inception_score) == [9.12] * 2


def test_a_long_run_says_what_it_takes_and_what_cheaper_ones_cost():
    cost = Cost(
        0.001, 0.02, num_samples=50_000, num_timesteps=1000, num_evaluations=1000, num_images=60_000
    )
    whole, steps, samples = cost_lines(cost)
    assert "About 14.2 h on this device" in whole
    assert "`timesteps=250` 3.8 h" in steps
    assert "the respaced sampler" in steps
    assert "`num_generated=10000` 2.9 h" in samples
    assert "biased" in samples
    assert cost_lines(Cost(0.001, 0.02, 10, 50, 50, 100)) == []
