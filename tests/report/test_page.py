"""The page: what it says, what it leaves out, and that it is safe to open."""

import copy
import re

import numpy as np
import pandas as pd
import pytest
from run_folders import conventions, per_image, smooth_run, sub_schedules

from ddpmbench.report import compare_nll
from ddpmbench.report.nll import NllReport

SUMMARY = {
    "schema": "ddpmbench.nll/1",
    "bits_per_dim": 3.61589,
    "half_width": 0.00398,
    "half_width_population": 0.01526,
    "prior": 0.00002,
    "kl": 2.01388,
    "decoder": 1.60199,
    "num_images": 10_000,
    "num_timesteps": 1000,
    "num_evaluations": 31_360,
    "estimator": "importance",
    "sampling": {"num_replicates": 2},
    "conventions": {
        "prediction": "eps",
        "variance": "fixed_large",
        "clip": True,
        "decoder": "exact",
        "schedule": "linear",
    },
    "checkpoint": {"source": "default", "family": "native", "sha256": "f6215dda321f" * 5},
    "data": {"source": "fashion-mnist", "split": "test", "sha256": "1f464896e377" * 5},
    "seed": 0,
    "device": "cpu, 2 threads",
    "precision": "fp32",
    "seconds": 78.7,
}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M 0 0 L 9 9"/></svg>'
ALWAYS = {"bound": SVG, "rate_distortion": SVG}


def contents(*, table=None, **changes):
    """A run of any summary, with a table of conventions or the smallest one."""
    summary = {**copy.deepcopy(SUMMARY), **changes}
    steps = smooth_run(summary["num_timesteps"])
    table = conventions(SUMMARY).iloc[:1] if table is None else table
    return NllReport(summary, *steps, table, sub_schedules(summary), per_image(10_000), None)


def html(svgs=ALWAYS, *, environment=None, **changes):
    return contents(**changes).page(svgs, environment)


def page(svgs=ALWAYS, **changes):
    """The words of the page."""
    return words(html(svgs, **changes))


def words(page):
    """What a page says, without its style and its tags."""
    body = re.sub(r"<(style|svg|title).*?</\1>", " ", page, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", " ", body)
    marks = {"nbsp": " ", "le": "<=", "plusmn": "+-", "thinsp": " ", "ndash": "-"}
    for name, mark in marks.items():
        text = text.replace(f"&{name};", mark)
    return " ".join(text.replace("\N{PLUS-MINUS SIGN}", "+-").split())


def test_the_headline_has_its_interval_and_what_makes_it_comparable():
    said = page()
    assert "<= 3.6159 +- 0.0040 bits/dim" in said
    assert "+- 0.0153, is the 95 % interval for the population" in said
    for fact in (
        "10,000 of fashion-mnist:test (1f464896e377)",
        "default (native, f6215dda321f)",
        "T = 1000, linear",
        "eps, fixed_large, clip, exact decoder",
        "importance, 2 replicates, 31,360 network evaluations, seed 0",
        "cpu, 2 threads, fp32, 79 s",
    ):
        assert fact in said


def test_the_page_brings_its_icon():
    # Browsers ask for /favicon.ico of a page that names none.
    assert '<link rel="icon" href="data:image/svg+xml,' in html()


def test_the_bar_is_as_wide_as_the_intervals_say():
    page = html()
    (width,) = re.findall(r'class="images" style="width: ([\d.]+)%', page)
    assert float(width) == pytest.approx(100 * 0.00398 / 0.01526, abs=0.01)
    assert "3.601 3.616 3.631" in words(page)


def test_what_is_unknown_is_said():
    said = page(half_width=None)
    assert "With one noise draw, the interval for these 10,000 images is unknown" in said
    assert "The interval +- 0.0153 is 95 % for the population" in said
    said = page(half_width_population=None, num_images=1)
    assert "for this one image" in said
    assert "With one image, the interval for the population is unknown" in said
    assert "nan" not in said


def test_the_parts_have_their_shares():
    said = page()
    assert "kl L 1 ..L T-1 , the timesteps 2.0139 55.7 %" in said
    assert "decoder L 0 , the pixels 1.6020 44.3 %" in said


def test_a_value_has_the_digits_and_the_commas_of_its_half_width():
    wide = {"bits_per_dim": 1465.7481, "half_width": 18.8284, "half_width_population": 120.21}
    said = page(**wide)
    assert "1,465.7 +- 18.8 bits/dim" in said
    assert "The line, +- 120, is" in said
    for text in ("1,465.7481", "18.8284"):
        assert text not in said


def test_a_table_stands_behind_its_figure_and_its_words_are_explained():
    said = page({**ALWAYS, "sub_schedules": SVG}, table=conventions(SUMMARY))
    figure, table = said.index("Fewer timesteps A respaced"), said.index("Other conventions")
    assert figure < table
    for part in (said[figure:table], said[table:]):
        assert "best_constant\u201d is the variance per timestep" in part


def test_every_figure_is_named():
    names = ("bound", "rate_distortion", "images", "sub_schedules", "calls")
    page = html(dict.fromkeys(names, SVG))
    for name in names:
        assert f"<figcaption>{NllReport.FIGURES[name]}</figcaption>" in page
        assert f'aria-label="{NllReport.FIGURES[name]}"' in page


@pytest.mark.parametrize("num_timesteps", [3, 10, 1000])
def test_half_of_the_steps_bits_are_where_it_says(num_timesteps):
    found = contents(num_timesteps=num_timesteps, prior=1e-4)
    said = words(found.page(ALWAYS))
    by = int(re.search(r"are spent at t (?:<=|≤) (\d+)", said)[1])
    steps = found.per_timestep
    kl = steps.bits_per_dim[1:]
    assert kl[steps.t <= by].sum() >= kl.sum() / 2 - 1e-12
    assert kl[steps.t <= by - 1].sum() < kl.sum() / 2


HEADINGS = {
    "images": "Per image",
    "sub_schedules": "Fewer timesteps",
    "calls": "Network evaluations",
    "decoding": "Progressive lossy decoding",
    "generation": "Progressive generation",
    "interpolation": "Interpolation",
}


def test_what_a_run_has_not_is_left_out():
    page = html()
    for heading in HEADINGS.values():
        assert heading not in page
    assert "Reproducibility" not in page
    whole = html({**ALWAYS, **dict.fromkeys(HEADINGS, SVG)})
    for heading in HEADINGS.values():
        assert f">{heading}<" in whole


def test_what_was_typed_is_text_and_no_markup():
    evil = '<script>alert("x")</script>&'
    table = conventions(SUMMARY).assign(used_by=evil, convention=evil)
    environment = {
        "versions": {evil: evil},
        "arguments": {"given": ["ddpmbench", "nll", evil], "resolved": {evil: evil}},
        "platform": evil,
    }
    checkpoint = {**SUMMARY["checkpoint"], "source": evil}
    page = html(table=table, environment=environment, checkpoint=checkpoint)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 12


def test_the_table_of_conventions_holds_its_numbers():
    said = page(table=conventions(SUMMARY))
    assert "this run 3.6159 +- 0.0040 -" in said
    assert "tanh decoder &amp; no clip 3.6036 +- 0.0040 \N{MINUS SIGN}0.0123" in said
    assert "a paper, 2021" in said
    assert "the best half 3.6784 +0.0625" in said
    own, fewer = said.index("this run 3.6"), said.index("bounds of respaced models")
    assert own < said.index("tanh decoder") < fewer < said.index("half the steps 3.8659")


@pytest.mark.parametrize(("source", "is_beside"), [("cifar10", True), ("fashion-mnist", False)])
def test_the_published_table_stands_beside_what_it_is_of(source, is_beside):
    data = {**SUMMARY["data"], "source": source}
    said = page(data=data)
    for published in ("Ho et al. 2020, table 4", "1.77581", "12.02277", "67.60125"):
        assert (published in said) == is_beside


def test_signs_are_typeset():
    low = {"bits_per_dim": -0.01, "half_width": 0.001, "num_evaluations": 2}
    table = conventions(SUMMARY).assign(used_by="a paper, <= 3.75")
    text = html(table=table, precision="bf16", precision_correction=low)
    assert "corrected by -0.01000 \N{PLUS-MINUS SIGN} 0.00100 from 1 term also" in text
    assert "a paper, \N{LESS-THAN OR EQUAL TO} 3.75" in text
    assert not re.search(r"\+-|&lt;=", text)


def test_every_step_is_in_the_page():
    page = html()
    rows = page.split('<tbody class="steps">')[1].split("</tbody>")[0]
    assert rows.count("<tr>") == 1000
    assert '>1.0000 <span class="pm">&plusmn;&nbsp;0.0196</span>' in rows
    assert "0.000001" in rows


@pytest.mark.parametrize("num_timesteps", [1000, 4000, 20000])
def test_a_page_is_small(num_timesteps):
    assert len(html(num_timesteps=num_timesteps)) < 1_000_000


def test_the_command_can_be_typed_again():
    given = ["ddpmbench", "nll", "--model-flags", "--image_size 32"]
    record = {"versions": {"torch": "2.0"}, "arguments": {"given": given}}
    page = html(environment=record)
    assert "<pre>ddpmbench nll --model-flags &#39;--image_size 32&#39;</pre>" in page


# ---- of a comparison


def compared(**changes):
    run = {
        "run": "runs/other",
        "bits_per_dim": 3.6024,
        "half_width": 0.004,
        "difference": -0.01353,
        "difference_half_width": 0.00018,
        "difference_half_width_population": 0.00024,
        "half_width_unpaired": 0.0056,
        "num_evaluations": 31_000,
        "same_rows": 1.0,
        **changes,
    }
    first = {"run": "runs/default", "bits_per_dim": 3.6159, "half_width": 0.004}
    return {**SUMMARY, "baseline": first, "runs": [run]}


GROUPS = pd.DataFrame(
    {
        "run": ["runs/other", "runs/other"],
        "t_first": [1, 2],
        "t_last": [1, 9],
        "difference": [-0.004, -0.0095],
        "half_width": [0.0001, np.nan],
        "cumulative": [-0.0135, -0.0095],
        "cumulative_half_width": [0.0002, 0.0001],
    }
)


def comparison_page(summary):
    """The words of the page, with some groups of timesteps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_nll, "difference_groups", lambda per_timestep: GROUPS)
        report = compare_nll.Comparison(summary, runs=None, per_timestep=None, folder=None)
        return words(report.page({"difference": SVG}))


def test_a_difference_is_said_with_its_interval():
    said = comparison_page(compared())
    assert "\N{MINUS SIGN}0.0135 +- 0.0002 bits/dim" in said
    assert "runs/other needs fewer bits than runs/default" in said
    assert "\N{MINUS SIGN}0.013530 +- " not in said
    assert re.search(r"runs/other .0\.0135 \+- 0\.0002 better 3\.6024 .* 100 % 31,000", said)
    assert "10,000 of fashion-mnist:test (1f464896e377)" in said
    assert "2-9" in said


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"difference": 0.01353}, "runs/default needs fewer bits than runs/other"),
        ({"difference_half_width": 0.02}, "Not significant"),
        ({"difference": 0.0, "difference_half_width": 0.0}, "Not significant"),
        ({"difference_half_width": None}, "interval is unknown"),
    ],
)
def test_a_verdict_is_no_surer_than_the_interval(changes, verdict):
    said = comparison_page(compared(**changes))
    assert verdict in said
    assert ("needs fewer bits" in said) == ("needs fewer bits" in verdict)


def test_several_runs_have_a_row_each():
    summary = compared()
    summary["runs"] = [summary["runs"][0], {**summary["runs"][0], "run": "runs/third"}]
    said = comparison_page(summary)
    assert "2 runs against runs/default" in said
    assert said.count("better") >= 2
    assert re.search(r"runs/third .0\.0135 \+- 0\.0002 better 3\.6024", said)
