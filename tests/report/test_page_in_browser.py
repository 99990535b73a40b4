"""The pages in a real browser: silent, alone, whole at every width, legible in light and dark."""

import os
import shutil

import pandas as pd
import pytest
from fidelity_folders import fidelity_folder, influence, reference, summary

import ddpmbench as db
from ddpmbench.report.nll import NllReport

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="drives the browser: pip install playwright"
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PAGES = ["importance", "comparison", "fid", "fid-comparison"]
WIDTHS = (360, 768, 1400)
LEGIBLE = 4.5  # WCAG 2, AA

LAYOUT = """() => ({
  page: document.documentElement.scrollWidth,
  figures: [...document.querySelectorAll('svg, img')].map(element => {
    const box = element.getBoundingClientRect();
    const scrolls = element.closest('.scroll') !== null && matchMedia('screen').matches;
    return {scrolls, name: element.getAttribute('aria-label') || element.outerHTML.slice(0, 80),
            left: box.left, right: box.right, width: box.width, height: box.height};
  }),
  cut: [...document.querySelectorAll('main *')].filter(element =>
    !element.closest('.scroll, svg') && element.getBoundingClientRect().right > innerWidth + 1
  ).map(element => element.outerHTML.slice(0, 80)),
})"""

# Every text with the color that it has and the first background behind it that is not clear.
COLORS = """() => {
  const clear = color => /^rgba\\(.*, 0\\)$/.test(color);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!clear(color)) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const element of document.querySelectorAll('body, body *')) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || ['STYLE', 'SCRIPT'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const inFigure = element.namespaceURI.endsWith('svg');
    found.push({text: element.textContent.trim().slice(0, 40), inFigure,
                ink: inFigure ? style.fill : style.color, paper: behind(element)});
  }
  return found;
}"""


def browser_path():
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    path = browser_path()
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH")
    home = tmp_path_factory.mktemp("home")
    with sync_api.sync_playwright() as driver:
        environment = {**os.environ, "HOME": str(home)}
        found = driver.chromium.launch(executable_path=path, args=ARGUMENTS, env=environment)
        yield found
        found.close()


@pytest.fixture(scope="module")
def folders(small_model, small_images, tmp_path_factory):
    """A run of nll with every figure, one of fid, and comparisons, with their pages."""
    root = tmp_path_factory.mktemp("runs")
    bound, scores = root / "importance", root / "fid"
    report = db.evaluate_nll(small_model, small_images, half_width=5.0, out=bound)
    db.progressive_pictures(small_model, small_images, report, pictures="all")
    whole = summary([reference(), reference("fashion-mnist:train", fid=14.1)])
    fidelity_folder(scores, whole | {"warnings": ["N = 120 is few"]}, influences=influence())
    for run in (bound, scores):
        db.write_report(run)
        db.compare([run, run], out=root / {bound: "comparison", scores: "fid-comparison"}[run])
    return root


class Visit:
    """An open page, and what it did that a page must not do."""

    def __init__(self, browser, path):
        self.url = path.as_uri()
        self.said, self.asked, self.refused = [], [], []
        self.page = browser.new_page(viewport={"width": 1400, "height": 900})
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", lambda request: self.refused.append(request.failure))
        self.page.goto(self.url)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.page.close()

    def show(self, *, width=1400, scheme="light", media="screen", details=True):
        """Bring the page into a state, whatever it was in before."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(media=media, color_scheme=scheme)
        self.page.evaluate(
            "open => document.querySelectorAll('details').forEach(d => d.open = open)", details
        )

    def requests_elsewhere(self):
        """All but the page itself, and what stands within it."""
        return [url for url in self.asked if url != self.url and not url.startswith("data:")]

    def misplaced(self):
        """What is wider than the screen, or not to be seen."""
        width = self.page.viewport_size["width"]
        layout = self.page.evaluate(LAYOUT)
        assert layout["figures"]
        wrong = [
            figure
            for figure in layout["figures"]
            if not (figure["width"] > 100 and figure["height"] > 20)
            or figure["left"] < 0
            or (figure["right"] > width + 0.5 and not figure["scrolls"])
        ]
        return wrong + layout["cut"] + ([layout["page"]] if layout["page"] > width else [])

    def illegible(self):
        """Texts whose contrast to what is behind them is too small."""
        found = self.page.evaluate(COLORS)
        assert sum(text["inFigure"] for text in found) > 15
        assert sum(not text["inFigure"] for text in found) > 40
        return [text for text in found if contrast(text["ink"], text["paper"]) < LEGIBLE]


def contrast(*colors):
    """Source: WCAG 2, contrast ratio."""
    light, dark = sorted(map(luminance, colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color):
    assert color.startswith("rgb("), color
    levels = [int(level) / 255 for level in color[4:-1].split(",")]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
    return sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_contrast_is_that_of_the_standard():
    assert contrast("rgb(255, 255, 255)", "rgb(0, 0, 0)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


@pytest.fixture(scope="module", params=PAGES)
def visit(browser, folders, request):
    """Each page once, for all tests of it."""
    with Visit(browser, folders / request.param / "report.html") as opened:
        yield opened


def test_a_page_is_silent_and_asks_for_nothing(visit):
    visit.show()
    visit.page.wait_for_timeout(100)
    assert visit.said == []
    assert visit.requests_elsewhere() == []
    assert visit.asked[0] == visit.url
    name = visit.url.split("/")[-2]
    unit = "FID (clean)" if name.startswith("fid") else "bits/dim"
    assert unit in visit.page.inner_text("h1 ~ .value")


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_is_within_the_screen(visit, width, details):
    visit.show(width=width, details=details)
    assert visit.misplaced() == []


TABLES = """() => [...document.querySelectorAll('.scroll')].filter(
    scroll => scroll.querySelector('table') && scroll.scrollWidth > scroll.clientWidth + 1
  ).map(scroll => {
    const rows = [...scroll.querySelectorAll('tbody tr')].filter(row => row.cells.length > 2);
    const first = rows[0].cells[0];
    const wide = cell => cell.getBoundingClientRect().width;
    const values = [...scroll.querySelectorAll('.pm')].map(interval => interval.closest('td'));
    const room = scroll.clientWidth - wide(first);
    const seen = values.every(cell => cell.colSpan > 1 || wide(cell) <= room);
    const before = first.getBoundingClientRect().left;
    scroll.scrollLeft = 150;
    const lines = rows.map(row => row.getBoundingClientRect().height / 20);
    return {name: scroll.getAttribute('aria-label'), seen, lines: Math.max(...lines),
            moved: Math.abs(first.getBoundingClientRect().left - before)};
  })"""


def test_on_a_phone_a_table_keeps_its_first_column_and_its_intervals(visit):
    visit.show(width=360)
    tables = visit.page.evaluate(TABLES)
    for table in tables:
        assert table["moved"] < 1, table
        assert table["seen"], table
        assert table["lines"] < 7, table
    assert tables


def test_every_text_is_legible_in_light_and_dark(visit):
    papers = set()
    for scheme in ("light", "dark"):
        visit.show(scheme=scheme)
        assert visit.illegible() == []
        papers.add(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def test_a_page_is_printed_in_light_colors_and_whole(visit):
    visit.show(scheme="dark", width=688, details=False)
    assert visit.page.pdf(format="A4").startswith(b"%PDF-")
    visit.show(scheme="dark", width=688, media="print", details=False)
    paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    assert visit.illegible() == []
    assert visit.misplaced() == []
    scrolled = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth)"
    assert all(width <= 688 for width in visit.page.evaluate(scrolled))


def test_every_panel_of_a_figure_is_drawn(browser, folders):
    """Marks and lines have their colors, though the panels were cut out of one file."""
    with Visit(browser, folders / "importance" / "report.html") as visit:
        drawn = visit.page.evaluate(
            """[...document.querySelectorAll('svg')].map(svg => [...svg.querySelectorAll('*')]
               .filter(e => e.getBBox && !e.closest('defs') && e.getBBox().width > 0).length)"""
        )
        variances = pd.read_csv(folders / "importance" / "sub_schedules.csv").variance.nunique()
        assert len(drawn) == 2 + 3 + 3 + variances + 1 + len(NllReport.STRIPS)
        assert min(drawn) > 10


# ---- what these tests are for


PLANTS = {
    "picture": '<img src="http://127.0.0.1:9/x.png" width="200" height="100" alt="">',
    "style": '<link rel="stylesheet" href="http://127.0.0.1:9/x.css">',
    "script": "<script>console.error('planted')</script>",
}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("is_guarded", [True, False])
def test_what_loads_or_runs_is_noticed(browser, folders, tmp_path, plant, is_guarded):
    page = (folders / "comparison" / "report.html").read_text()
    page = page.replace("</main>", f"{PLANTS[plant]}</main>")
    if not is_guarded:
        page = page.replace("Content-Security-Policy", "X")
    (tmp_path / "planted.html").write_text(page)
    with Visit(browser, tmp_path / "planted.html") as visit:
        visit.page.wait_for_timeout(100)
        assert visit.said or visit.requests_elsewhere()
        if is_guarded:  # the page itself lets nothing out
            assert len(visit.requests_elsewhere()) == visit.refused.count("csp")
            assert "planted" not in visit.said


def test_what_is_too_wide_or_pale_is_noticed(browser, folders, tmp_path):
    page = (folders / "comparison" / "report.html").read_text()
    wide = '<p style="width: 500px; max-width: none">wide</p>'
    pale = '<p style="color: #888888">pale</p>'
    (tmp_path / "planted.html").write_text(page.replace("</main>", f"{wide}{pale}</main>"))
    with Visit(browser, tmp_path / "planted.html") as visit:
        visit.show(width=360)
        assert visit.misplaced()
        assert [text["text"] for text in visit.illegible()] == ["pale"]
