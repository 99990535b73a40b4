"""Figures within a page: panels, with names and colors of their own."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from run_folders import smooth_run

from ddpmbench.execution.folder import write_figure
from ddpmbench.report.figures import COLORS, GRID, INK
from ddpmbench.report.html import inline_panels
from ddpmbench.report.nll_figures import bound_figure
from ddpmbench.report.rate_distortion import rate_distortion_figure
from ddpmbench.report.sample import samples_figure


@pytest.fixture(scope="module")
def svgs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    per_timestep, curve = smooth_run(40)
    write_figure(folder, "bound", *bound_figure(per_timestep, curve))
    write_figure(folder, "rate_distortion", *rate_distortion_figure(curve))
    return {path.stem: path.read_text() for path in (folder / "figures").glob("*.svg")}


def names_and_uses(panel):
    names = re.findall(r' id="([^"]+)"', panel)
    return names, set(re.findall(r'(?:href="|url\()#([^")]+)', panel))


def test_each_panel_is_a_picture_of_its_own(svgs):
    for name, count in (("bound", 2), ("rate_distortion", 3)):
        panels = inline_panels(svgs[name], name, "what it shows")
        assert len(panels) == count
        lefts = []
        for k, panel in enumerate(panels, 1):
            root = ElementTree.fromstring(panel)
            assert (root.get("class"), root.get("role")) == ("panel", "img")
            assert root.get("aria-label") == f"what it shows, {k} of {count}"
            left, top, width, height = map(float, root.get("viewBox").split())
            assert (top, width, height) == (0, 316.8, 230.4)
            lefts.append(left)
            # What it draws into is within what it shows.
            (frame,) = root.iter("rect")
            x, across = float(frame.get("x")), float(frame.get("width"))
            assert left < x < x + across < left + width
        assert lefts == pytest.approx([316.8 * k for k in range(count)])


def test_names_are_unique_and_each_that_is_used_is_there(svgs):
    seen = set()
    for name in svgs:
        for panel in inline_panels(svgs[name], name, ""):
            names, uses = names_and_uses(panel)
            assert uses, "this test is of figures that refer to their parts"
            assert uses <= set(names)
            assert len(names) == len(set(names))
            assert not seen & set(names)
            seen |= set(names)


def test_the_texts_of_a_figure_are_all_there(svgs):
    for name, svg in svgs.items():
        texts = {"".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(TEXT)}
        panels = "".join(inline_panels(svg, name, ""))
        assert len(texts) > 10
        for text in texts:
            assert f">{text}<" in panels


TEXT = "{http://www.w3.org/2000/svg}text"


def test_the_colors_are_those_of_the_page(svgs):
    for name, svg in svgs.items():
        panels = "".join(inline_panels(svg, name, ""))
        for color in (INK, GRID, *COLORS):
            assert color not in panels.lower()
        assert {"var(--ink)", "var(--grid)", "var(--data-1)"} <= set(
            re.findall(r"var\([^)]+\)", panels)
        )


def test_a_figure_without_panels_is_one_and_brings_no_style_for_the_whole_page(tmp_path):
    svg = write_figure(tmp_path, "samples", *samples_figure(np.zeros((3, 1, 8, 8), np.uint8)))
    assert svg == (tmp_path / "figures" / "samples.svg").read_text()
    (panel,) = inline_panels(svg, "samples", "a < b")
    assert 'aria-label="a &lt; b"' in panel
    assert "<style" in svg
    assert not re.search("<style|<metadata", panel)
