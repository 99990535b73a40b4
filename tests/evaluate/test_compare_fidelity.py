"""Differences between runs of fid: what is refused, and that the intervals are what they say."""

import copy
import io
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from fidelity_folders import (
    NUM_GENERATED,
    influence,
    of_another_network,
    reference,
    summary,
)

import ddpmbench as db
from ddpmbench.checksums import write_json, write_npz
from ddpmbench.report.compare_nll import printed_comparison

PAIRED = ("fid", "kid", "precision", "inception_score")
NOTHING = object()


def folder(path, whole, influences):
    """A run with no more than is compared."""
    path.mkdir(parents=True)
    write_json(path / "summary.json", whole)
    if influences is not NOTHING:
        write_npz(path / "influence.npz", influences)
    return path


@pytest.fixture
def pair(tmp_path):
    """Makes a baseline and another run of the same noise, the latter changed."""

    def make(name="pair", *, shared=0.9, influences=None, change=None, references=None, **changes):
        root = tmp_path / name
        of = references or [reference(), reference("fashion-mnist:train", fid=14.0)]
        first = folder(root / "a", summary(of), influence(1, shared=shared))
        other = [{**each, "fid": each["fid"] - 1, "recall": 0.5} for each in of]
        whole = summary(other, inception_score=9.5, **changes)
        if change is not None:
            change(whole)
        result = influence(2, shared=shared) if influences is None else influences
        return first, folder(root / "b", whole, result)

    return make


def rows(found):
    """The differences by measure and reference."""
    return {(row.measure, row.reference): row for row in found.differences.itertuples()}


def own(found, measure):
    """Of the first reference, or of none."""
    return rows(found)[measure, "" if measure == "inception_score" else "fashion-mnist:test"]


# ---- numbers


def test_differences_are_of_the_summaries(pair):
    result = db.compare(pair())
    expected = {"fid": -1, "kid": 0, "precision": 0, "recall": 0.02, "inception_score": 0.38}
    for measure, difference in expected.items():
        row = own(result, measure)
        assert row.difference == pytest.approx(difference, abs=1e-9)
        assert row.value - row.baseline == row.difference
    assert rows(result)["fid", "fashion-mnist:train"].difference == -1
    assert len(result.differences) == 2 * 5 + 1


def test_a_paired_half_width_is_that_of_the_mean_of_differences(pair):
    runs = pair()
    result = db.compare(runs)
    one, other = (dict(np.load(run / "influence.npz")) for run in runs)
    for measure in PAIRED:
        row = own(result, measure)
        expected = 1.96 * np.std(other[measure] - one[measure], ddof=1) / math.sqrt(NUM_GENERATED)
        assert row.half_width == pytest.approx(expected)
        assert row.half_width < 0.6 * row.half_width_unpaired
        assert row.how == "paired"
    for measure in ("fid_infinity", "recall"):
        row = own(result, measure)
        assert row.how == "independent"
        assert row.half_width == row.half_width_unpaired
    # Influences are of the first reference alone.
    assert rows(result)["fid", "fashion-mnist:train"].how == "independent"


def test_noise_that_is_not_shared_makes_a_pair_as_wide_as_independent_runs(pair):
    result = db.compare(pair(shared=0.0))
    for measure in ("fid", "kid", "inception_score"):
        row = own(result, measure)
        assert row.how == "paired"
        assert row.half_width == pytest.approx(row.half_width_unpaired, rel=0.25)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"sampler": None},
        {"sampler": None, "seed": None, "checkpoint": None},
        {"influences": NOTHING},
        {"influences": {}},
    ],
)
def test_runs_that_do_not_share_their_noise_are_independent(pair, options):
    result = db.compare(pair(**options))
    for measure in PAIRED:
        row = own(result, measure)
        assert row.how == "independent"
    row = own(result, "fid")
    assert row.half_width == pytest.approx(0.21 * math.sqrt(2))


def test_squares_of_independent_half_widths_add_up(pair):
    def change(whole):
        whole["references"][0]["fid_half_width"] = 0.28

    row = own(db.compare(pair(change=change, seed=1)), "fid")
    assert row.half_width == pytest.approx(0.35)


def test_what_is_not_known_of_a_run_has_no_difference(pair):
    def change(whole):
        whole["inception_score"] = whole["inception_score_half_width"] = None
        whole["references"][0]["recall_half_width"] = None

    runs = pair(change=change)
    result = db.compare(runs)
    (run,) = result.summary["runs"]
    by = {(of["measure"], of["reference"]): of for of in run["differences"]}
    assert by["inception_score", ""]["difference"] is None
    assert by["inception_score", ""]["half_width"] is None
    recall = by["recall", "fashion-mnist:test"]
    assert recall["difference"] == pytest.approx(0.02)
    assert recall["half_width"] is None
    text = printed_comparison(result.summary, "table")
    assert re.search(r"inception score +9.12 +unknown +unknown +", text)


def test_a_run_does_not_differ_from_itself_and_swapped_runs_differ_the_other_way(pair):
    first, second = pair()
    for row in rows(db.compare([first, first])).values():
        assert row.difference == 0
        assert (row.half_width == 0) == (row.how == "paired")
    one, other = rows(db.compare([first, second])), rows(db.compare([second, first]))
    for key, row in one.items():
        assert row.difference == -other[key].difference
        assert row.half_width == pytest.approx(other[key].half_width)


def test_paired_intervals_cover_the_true_difference(tmp_path):
    """Values are means of N numbers that two runs share in part."""
    draw = np.random.default_rng(0)
    number, repeats, truth, covered, wide = 60, 300, 0.3, 0, 0
    for k in range(repeats):
        shared = draw.normal(size=number)
        runs = []
        for name, mean in (("a", 12.0), ("b", 12.0 + truth)):
            value = mean + shared + 0.4 * draw.normal(size=number)
            half_width = 1.96 * value.std(ddof=1) / math.sqrt(number)
            whole = summary([reference(fid=value.mean(), fid_half_width=half_width)])
            whole["num_generated"] = number
            psi = {"fid": value - value.mean()}
            runs.append(folder(tmp_path / str(k) / name, whole, psi))
        row = own(db.compare(runs), "fid")
        covered += abs(row.difference - truth) <= row.half_width
        wide += abs(row.difference - truth) <= row.half_width_unpaired
    assert 0.92 <= covered / repeats <= 0.98
    assert wide / repeats > 0.99


# ---- refusals


def unlike(name, value):
    def change(whole):
        of = whole
        *path, last = re.findall(r"\w+", name)
        for key in path:
            of = of[int(key) if key.isdecimal() else key]
        of[last] = value

    return change


FIELDS = {f"protocol.{name}": 77 for name in summary()["protocol"]} | {
    "protocol.id": "ddpm",
    "protocol.resize": "legacy_tensorflow",
    "protocol.eight_bit": "truncate",
    "protocol.channels": "RGB",
    "protocol.inception_order": "shuffled",
    "protocol.dtype": "float16",
    "protocol.feature_network.name": "other",
    "protocol.feature_network.sha256": "0" * 64,
    "protocol.feature_network.num_features": 7,
    "references[0].sha256": "0" * 64,
    "references[1].sha256": "0" * 64,
    "references[0].num_reference": 9_999,
    "num_generated": 119,
    "compute_precision": "bf16",
    "name": "FD[0123456789ab]",
}
del FIELDS["protocol.feature_network"]


@pytest.mark.parametrize("name", FIELDS)
def test_unlike_runs_are_refused_by_the_name_of_what_differs(pair, name):
    first, second = pair(change=unlike(name, FIELDS[name]), influences=NOTHING)
    with pytest.raises(db.InputError) as caught:
        db.compare([first, second])
    text = str(caught.value)
    value = 12 * "0" if name.endswith("sha256") else FIELDS[name]
    assert f"{second}: {name} is {value}, but " in text
    assert str(first) in text
    assert "\n" not in text


def test_runs_against_other_references_are_refused(pair):
    first, second = pair(change=lambda whole: whole["references"].pop())
    with pytest.raises(db.InputError, match="number of references is 1, but 2"):
        db.compare([first, second])


def test_a_bound_and_a_score_do_not_compare(pair, runs):
    nll, (first, _) = runs["every-pair"].folder, pair()
    with pytest.raises(db.InputError, match="is a run of nll, not a run of fid"):
        db.compare([first, nll])
    with pytest.raises(db.InputError, match="is a run of fid, not a run of nll"):
        db.compare([nll, first])


@pytest.mark.parametrize("size", [NUM_GENERATED - 1, NUM_GENERATED + 1, "damaged", "nan"])
def test_influences_of_other_samples_are_refused(pair, size):
    first, second = pair()
    if size == "damaged":
        (second / "influence.npz").write_bytes(b"damaged")
    else:
        number = NUM_GENERATED if size == "nan" else size
        of_each = np.full(number, np.nan if size == "nan" else 1.0)
        write_npz(second / "influence.npz", {"fid": of_each})
    with pytest.raises(db.InputError, match=re.escape(f"{second / 'influence.npz'}: missing")):
        db.compare([first, second])


# ---- files and words


def test_the_printed_table_says_which_intervals_are_paired(pair):
    first, second = pair()
    result = db.compare([first, second])
    text = printed_comparison(result.summary, "table")
    assert text.startswith(f"FID (clean), differences from {first}\n\n{second}\n")
    fid, infinity = text.splitlines()[4:6]
    assert re.search(r"12\.34 +11\.34 +-1\.00 \+- 0\.\d\d +paired, \d\.\d times narrower", fid)
    assert re.search(r"\+0\.00 \+- 0\.35 +independent +fashion-mnist:test", infinity)
    assert "+0.38" in text
    assert json.loads(printed_comparison(result.summary, "json")) == result.summary
    assert float(printed_comparison(result.summary, "quiet")) == own(result, "fid").difference
    table = pd.read_csv(io.StringIO(printed_comparison(result.summary, "csv")))
    assert list(table.difference) == list(result.differences.difference)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"fid": -1}, "better"), ({"fid": 1}, "worse"), ({"fid": 0.001}, "not significant")],
)
def test_the_page_says_which_is_better(pair, tmp_path, change, word):
    def moved(whole):
        first = whole["references"][0]
        first["fid"] = 12.34 + change["fid"]

    runs = pair(change=moved)
    db.compare(runs, out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"FID (clean): {word}<" in page
    # More recall is better, if it is sure.
    assert page.count(">not significant<") >= 5


def test_a_comparison_of_another_network_is_nowhere_called_fid(pair, tmp_path):
    root = tmp_path / "other"
    whole = of_another_network(summary())
    runs = [folder(root / name, copy.deepcopy(whole), influence(k)) for k, name in enumerate("ab")]
    text = printed_comparison(db.compare(runs).summary, "table")
    assert len(re.findall(r"\bFID\b", text)) == 1
    assert "is not FID" in text
