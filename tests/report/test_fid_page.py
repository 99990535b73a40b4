"""The page of a run of fid: what it says, what it leaves out, and that it is safe to open."""

import re

import pytest
from fidelity_folders import HASH, against_n, of_another_network, reference, summary
from test_page import SVG, words

from ddpmbench.report.fid import FidReport
from ddpmbench.report.text import joined

ALL = dict.fromkeys([*FidReport.FIGURES, *FidReport.STRIPS], SVG)


def page(whole=None, svgs=ALL, **changes):
    """The words of a page."""
    whole = whole or summary(**changes)
    return words(FidReport(whole, None, against_n(whole), None).page(svgs))


def test_the_page_says_every_number_with_its_interval():
    text = page()
    for number in (
        "12.34 +- 0.21 FID (clean)",
        "FID-infinity 11.90 +- 0.25",
        "KID x 1000 4.230 +- 0.310",
        "precision 0.710 +- 0.081",
        "recall 0.480 +- 0.030",
        "inception score 9.12 +- 0.11",
    ):
        assert number in text
    for fact in ("resize clean", "10,000 of fashion-mnist:test", f"({HASH[:12]}), 2,048 features"):
        assert fact in text


def test_every_reference_has_its_column():
    of = [reference(), reference("fashion-mnist:train", fid=3.25, kid=None, kid_half_width=None)]
    text = page(summary(of))
    assert "against fashion-mnist:test against fashion-mnist:train" in text
    assert "FID 12.34 +- 0.21 3.25 +- 0.21" in text
    assert "4.230 +- 0.310 unknown" in text


def test_a_score_of_another_network_is_nowhere_called_fid():
    text = page(of_another_network(summary()))
    assert f"FD[{HASH[:12]}] is not FID" in text
    assert len(re.findall(r"\bFID\b", text)) == 1
    assert "inception score" not in text
    assert "is not FID" not in page()


def test_warnings_stand_at_the_top():
    text = page(warnings=["N is <few>"])
    assert text.startswith("N is &lt;few&gt;")


@pytest.mark.parametrize(
    ("changes", "explained"),
    [
        ({}, []),
        ({"precision": 0.0}, ["lies within"]),
        ({"recall_half_width": None}, ["Recall has no interval"]),
        ({"recall": None, "recall_half_width": None}, []),
    ],
)
def test_a_missing_interval_and_a_score_of_0_are_explained(changes, explained):
    text = page(summary([reference(**changes)]))
    for sentence in ("lies within", "Recall has no interval"):
        assert (sentence in text) == (sentence in explained)


@pytest.mark.parametrize(
    ("figure", "heading"),
    [
        ("fid_against_n", "Number of samples"),
        ("per_image", "Per sample"),
        ("nearest", FidReport.STRIPS["nearest"][0]),
        ("samples", FidReport.STRIPS["samples"][0]),
    ],
)
def test_what_there_is_no_figure_of_has_no_section(figure, heading):
    less = {name: svg for name, svg in ALL.items() if name != figure}
    whole, shorter = (page(svgs=svgs) for svgs in (ALL, less))
    assert heading in whole
    assert heading not in shorter
    assert "Pictures" not in page(svgs={"per_image": SVG})


def test_facts_of_one_name_are_one_fact():
    pairs = [("a", "1"), ("", "2"), ("b", "3"), ("b", "4")]
    assert joined(pairs) == {"a": "1; 2", "b": "3; 4"}
