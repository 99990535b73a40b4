"""The printed score: its name, its protocol, and what it is of."""

import io
import json
import re

import pandas as pd
import pytest
from fidelity_folders import HASH, of_another_network, reference, summary

from ddpmbench.report.fidelity_text import (
    MEASURES,
    comparable_only,
    fidelity_facts,
    headline,
    measures,
    printed_fidelity,
)

TWO = [reference(), reference("fashion-mnist:train", fid=3.25, fid_infinity=2.5)]


def cells(text, measure):
    """The columns of the rows of this name."""
    rows = [re.split(r" {2,}", line) for line in text.splitlines()]
    return [row[1:] for row in rows if row[0] == measure]


def test_a_distance_is_never_printed_without_its_name_and_protocol():
    assert headline(summary()) == "FID 12.34 +- 0.21 (clean)"
    assert headline(of_another_network(summary())) == f"FD[{HASH[:12]}] 12.34 +- 0.21 (clean)"
    assert headline(summary(fid_half_width=None)) == "FID 12.34 (clean)"
    assert headline(summary(TWO)).endswith(" (clean) against fashion-mnist:test")
    protocol = summary()["protocol"] | {"id": "ddpm"}
    assert headline(summary(protocol=protocol)).endswith("(ddpm)")


def test_every_measure_has_a_row_with_its_interval():
    text = printed_fidelity(summary(), "table")
    test = "fashion-mnist:test"
    assert cells(text, "FID-infinity") == [["11.90 +- 0.25", test]]
    assert cells(text, "KID x 1000") == [["4.230 +- 0.310", test]]
    assert cells(text, "precision") == [["0.710 +- 0.081", test]]
    assert cells(text, "recall") == [["0.480 +- 0.030", test]]
    assert cells(text, "inception score") == [["9.12 +- 0.11", "no reference; 10 splits"]]
    assert cells(text, "FID") == []  # it is the headline


def test_with_several_references_each_has_its_own_rows():
    text = printed_fidelity(summary(TWO), "table")
    assert cells(text, "FID") == [
        ["12.34 +- 0.21", "fashion-mnist:test"],
        ["3.25 +- 0.21", "fashion-mnist:train"],
    ]
    assert [row[0] for row in cells(text, "FID-infinity")] == ["11.90 +- 0.25", "2.50 +- 0.25"]
    assert len(cells(text, "inception score")) == 1
    lines = [line for line in text.splitlines() if line.startswith("reference")]
    assert [line.split()[3] for line in lines] == ["fashion-mnist:test", "fashion-mnist:train"]
    assert all("10,000 of" in line for line in lines)


def test_a_score_of_another_network_is_nowhere_called_fid():
    whole = of_another_network(summary(TWO))
    text = printed_fidelity(whole, "table")
    name = f"FD[{HASH[:12]}]"
    for row in text.split("\n\n")[1].splitlines()[1:]:
        assert f"[{HASH[:12]}]" in row
        assert not re.search(r"FID|inception", row)
    assert cells(text, f"{name}-infinity")
    assert cells(text, f"class score [{HASH[:12]}]")
    (said,) = (line for line in text.splitlines() if "is not FID" in line)
    assert said.startswith(name)
    assert "the same network" in said
    assert comparable_only(summary()) is None


def test_what_is_not_known_is_said_to_be_unknown():
    nothing = dict.fromkeys(("precision", "precision_half_width", "recall", "recall_half_width"))
    of = summary([reference(**nothing)], inception_score=None, inception_score_half_width=None)
    text = printed_fidelity(of, "table")
    for measure in ("precision", "recall", "inception score"):
        assert cells(text, measure)[0][0] == "unknown"
    assert "None" not in text


def test_everything_that_makes_a_score_comparable_is_printed():
    text = printed_fidelity(summary(), "table")
    protocol = summary()["protocol"]
    for word in (
        "120 of samples.npz",
        "10,000 of fashion-mnist:test",
        "default (native, f6215dda321f)",
        "ancestral, T = 100 of 1,000, fixed_large, clip, 12,000 network evaluations, seed 0",
        "resize clean, round to 8 bits, gray repeated",
        "10 splits (file order), KID of 100 x 1,000, 3 neighbors",
        f"inception-2015-12-05 ({HASH[:12]}), 2,048 features",
        "cpu, 2 threads, fp32, 412 s",
        protocol["dtype"],
    ):
        assert word in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "ddim", "eta": 0.5}, "ddim, T = 100 of 1,000, eta 0.5, clip"),
        ({"added_noise": "none", "clip": False}, "fixed_large, no added noise, no clip"),
        ({"num_timesteps": 1000, "labels": "i mod 10"}, "T = 1,000, fixed_large, clip, classes: i"),
    ],
)
def test_a_sampler_is_said_in_words(change, expected):
    whole = summary()
    sampler = whole["sampler"] | change
    assert expected in dict(fidelity_facts(whole | {"sampler": sampler}))["sampler"]


def test_samples_that_came_from_elsewhere_have_no_sampler():
    elsewhere = {"checkpoint": None, "sampler": None, "num_evaluations": None, "seed": None}
    samples = {**summary()["samples"], "source": "theirs", "skipped": 3}
    text = printed_fidelity(summary(**elsewhere, samples=samples), "table")
    assert "120 of theirs (abababababab); 3 skipped" in text
    assert "sampler" not in text
    assert "checkpoint" not in text


def test_the_other_formats_hold_the_same_numbers():
    whole = summary(TWO)
    assert json.loads(printed_fidelity(whole, "json")) == whole
    assert float(printed_fidelity(whole, "quiet")) == whole["fid"]
    table = pd.read_csv(io.StringIO(printed_fidelity(whole, "csv")))
    assert list(table.reference) == ["fashion-mnist:test", "fashion-mnist:train"]
    assert list(table.fid) == [12.34, 3.25]
    assert list(table["protocol.feature_network.sha256"]) == [HASH] * 2
    assert list(table.inception_score) == [9.12] * 2
    assert [of.key for of in measures(summary())] == [key for key in MEASURES if key != "fid"]
