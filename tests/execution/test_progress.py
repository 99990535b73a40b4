"""Progress: what is essential has room on any terminal, and a notebook needs no widgets."""

import io
import sys
import types

import pytest
from rich.console import Console
from rich.segment import Segment

import ddpmbench as db
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.evaluate.progress import remark
from ddpmbench.execution import progress as module
from ddpmbench.execution.progress import progress, terminal_bar
from ddpmbench.execution.worker import RunListener, RunProgress
from ddpmbench.likelihood.importance_estimator import RoughBound

ROUGH = RoughBound(3.6159 * NATS_PER_BIT, 0.0085 * NATS_PER_BIT, is_rough=True)


class Pace:
    """The longest that there is."""

    calls = 1

    def text(self, done, total, *, with_unit=True):
        unit = " evaluations" if with_unit else ""
        return f"12,345{unit}/s, 12 h 59 min left"


def screen(label, width, text):
    """The lines of a terminal of this width."""
    console = Console(
        width=width, height=25, file=io.StringIO(), force_terminal=True, color_system=None
    )
    lines = []
    with terminal_bar(label, Pace(), console) as update:
        update(45, 100, text)
        live = console._live_stack[-1]
        lines = console.render_lines(live.get_renderable())
    return ["".join(part.text for part in Segment.simplify(line)).rstrip() for line in lines]


@pytest.mark.parametrize("width", [60, 72, 200])
@pytest.mark.parametrize("label", ["nll", "pictures"])
def test_percentage_time_left_and_bound_have_room(width, label):
    first, second = screen(label, width, remark(RunProgress(45, 100, ROUGH)))
    assert first.startswith(label)
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 2 in first
    assert " 45 %" in first
    assert "12 h 59 min left" in first
    assert second == "so far NLL <= 3.6159 +- 0.0085 bits/dim, narrower at the end"
    assert max(len(first), len(second)) <= width


def test_a_remark_has_a_line_of_its_own():
    assert len(screen("nll", 80, "")) == 1
    assert len(screen("nll", 60, "x" * 200)[1]) == 60


# ---- the interval that is shown


def test_at_the_end_the_interval_is_that_of_the_result(small_model, small_images):
    seen = []
    listener = RunListener(progress=seen.append)
    report = db.evaluate_nll(small_model, small_images, half_width=0.9, listener=listener)
    last = seen[-1]
    assert last.done == last.total == report.summary["num_evaluations"]
    assert last.bound.half_width / NATS_PER_BIT == pytest.approx(report.summary["half_width"])
    assert last.bound.nats / NATS_PER_BIT == pytest.approx(report.summary["bits_per_dim"])
    assert "narrower" not in remark(last)
    assert last.stage in remark(last)
    rough = [now for now in seen if now.bound is not None and now.bound.is_rough]
    assert rough
    assert all("narrower at the end" in remark(now) for now in rough)


# ---- from Python


class Handle:
    def __init__(self, shown):
        self.shown = shown

    def update(self, data, *, raw):
        assert raw
        self.shown.append(data)


@pytest.fixture
def notebook(monkeypatch):
    """An IPython that records what is displayed, and has no widgets."""
    shown = []

    def display(data, *, raw, display_id):
        assert raw
        assert display_id
        shown.append(data)
        return Handle(shown)

    shell = types.SimpleNamespace(kernel=object())
    package = types.ModuleType("IPython")
    package.get_ipython = lambda: shell
    package.display = types.ModuleType("IPython.display")
    package.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", package.display)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    return shown


def test_a_notebook_shows_one_line_of_text_that_changes(notebook, capsys):
    with progress("nll", "evaluations") as update:
        update(0, 10, "")
        update(10, 10, "the end")
    assert notebook == [
        {"text/plain": "nll: 0 of 10 (0%)"},
        {"text/plain": notebook[-1]["text/plain"]},
    ]
    assert notebook[-1]["text/plain"].startswith("nll: 10 of 10 (100%)")
    assert notebook[-1]["text/plain"].endswith("the end")
    assert capsys.readouterr().err == ""


def evaluate(model, images, **options):
    return db.evaluate_nll(model.respaced(3), images, estimator="every-pair", **options)


@pytest.mark.parametrize("options", [{"progress": False}, {"listener": RunListener()}])
def test_it_can_be_turned_off(small_model, small_images, monkeypatch, capsys, options):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    evaluate(small_model, small_images, **options)
    assert capsys.readouterr().err == ""


def test_by_default_python_shows_it_on_standard_error(
    small_model, small_images, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    evaluate(small_model, small_images, out=tmp_path)
    shown = capsys.readouterr()
    assert f"36 network evaluations at first; to resume: `out={tmp_path}`" in shown.err
    assert "nll: 36 of 36 (100%)" in shown.err
    assert shown.out == ""
    db.write_report(tmp_path)
    assert "figures: 3 of 4 (75%)" in capsys.readouterr().err
    db.generate_samples(small_model.respaced(3), 2)
    shown = capsys.readouterr().err
    assert shown.startswith("2 images, 3 network evaluations each\n")
    assert "sample: 2 of 2 (100%)" in shown
