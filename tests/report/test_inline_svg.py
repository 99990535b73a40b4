"""Figures within a page: panels, names of their own, and nothing that runs or loads."""

import re
from xml.etree import ElementTree

import pytest
from run_folders import smooth_run

from ddpmbench.execution.folder import write_figure
from ddpmbench.report.figures import COLORS, GRID, INK
from ddpmbench.report.html import inline_panels
from ddpmbench.report.nll_figures import bound_figure
from ddpmbench.report.rate_distortion import rate_distortion_figure


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


HOSTILE = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
 viewBox="0 0 10 10" onload="alert(1)"><script>alert(2)</script>
<style>@import url(http://elsewhere/x.css)</style><foreignObject><b>html</b></foreignObject>
<a href="javascript:alert(3)"><path d="M 0 0"/></a><image href="http://elsewhere/x.png"/>
<use xlink:href="http://elsewhere/x.svg#y"/><path id="line" onclick="alert(4)" d="M 0
 0 L 1 1"/><use xlink:href="#line"/><image href="data:image/png;base64,AAAA"/></svg>"""


def test_nothing_that_runs_or_loads_gets_into_a_page():
    (panel,) = inline_panels(HOSTILE, "decoding", "a < b")
    assert not re.search("script|alert|elsewhere|import|onclick|onload|foreign|html", panel)
    assert 'd="M 0 0 L 1 1"' in panel
    assert 'id="decoding-line"' in panel
    assert '<use href="#decoding-line" />' in panel
    assert 'href="data:image/png;base64,AAAA"' in panel
    assert 'aria-label="a &lt; b"' in panel
