"""Numbers, file names and snippets of the documents hold; commands and links: test_docs."""

import json
import re

import documents
import pandas as pd
import pytest
from click.testing import CliRunner
from documents import ROOT

from ddpmbench import load_checkpoint
from ddpmbench.cli.main import ddpmbench
from ddpmbench.evaluate.page import RECORD, load_report, write_report
from ddpmbench.metrics.scores import PROTOCOLS
from ddpmbench.report.compare_nll import printed_comparison
from ddpmbench.report.fid import printed_fid
from ddpmbench.report.nll_text import printed_nll
from ddpmbench.report.rate_distortion import curve_summary, printed_rate_distortion
from ddpmbench.report.score import p_words, printed_scores
from ddpmbench.report.text import with_interval

README = (ROOT / "README.md").read_text()
RUN_FOLDER = (ROOT / "docs" / "reference" / "run_folder.md").read_text()
SAMPLES = (ROOT / "docs" / "guides" / "samples_and_fid.md").read_text()
SNIPPETS = sorted(
    path for path in (ROOT / "docs").rglob("*.md") if documents.blocks(path.read_text(), "python")
)


def blocks(language):
    return documents.blocks(README, language)


def published(name):
    return json.loads((ROOT / "results" / name / "summary.json").read_text())


def printed_curve():
    curve = pd.read_csv(ROOT / "results" / "default" / "rate_distortion.csv")
    return printed_rate_distortion(curve_summary(curve, published("default")), curve, "table")


def area(of):
    return f"{of['value']:.3f} ({of['lower']:.3f} to {of['upper']:.3f})"


def difference(of):
    value = with_interval(of["difference"], of["half_width"], sign="+")
    return f"{value}, {p_words(of['p_value'])}"


@pytest.mark.parametrize("name", ["train-test", "few", "many", "digits"])
def test_the_table_of_scores_is_that_of_the_runs(name):
    text = (ROOT / "results" / "score" / "README.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| [{name}]")]
    of = load_report(ROOT / "results" / "score" / name).summary["comparison"]
    areas = (of["auroc"], of["auroc_corrected"], of["auroc_nearest"])
    cells = [difference(of), difference(of["corrected"]), *map(area, areas)]
    assert row.split(" | ")[1:] == [*cells[:-1], f"{cells[-1]} |"]


def test_the_printed_scores_are_those_of_the_command():
    text = (ROOT / "results" / "score" / "README.md").read_text()
    report = load_report(ROOT / "results" / "score" / "few")
    printed = printed_scores(report.summary, report.per_image, "table")
    assert documents.blocks(text, "text") == [printed + "\n"]


def inspected():
    return CliRunner().invoke(ddpmbench, ["inspect"]).stdout.rstrip("\n")


@pytest.mark.parametrize(
    "printed",
    [
        lambda: printed_nll(published("default"), "table"),
        inspected,
        printed_curve,
        lambda: printed_fid(published("quality"), "table"),
        lambda: printed_comparison(published("compare"), "table"),
    ],
    ids=["nll", "inspect", "rd", "fid", "compare"],
)
def test_the_outputs_are_those_of_the_commands(printed):
    assert printed() + "\n" in blocks("text")


@pytest.mark.parametrize("path", [ROOT / "README.md", *SNIPPETS], ids=lambda path: path.name)
def test_the_python_runs(path, tmp_path, monkeypatch):
    if path.name == "checkpoints.md":
        pytest.skip("its networks are run by tests/cli/test_custom_examples.py")
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddpmbench.execution.speed.BATCH_SECONDS", 0.05)  # of measure_speed
    monkeypatch.setattr("ddpmbench.execution.timing.LEAST_SECONDS", 0.0)
    names = {}
    for block in documents.blocks(path.read_text(), "python"):
        exec(compile(block, path.name, "exec"), names)
    if "report" in names:
        assert 0 < names["report"].summary["bits_per_dim"] < 8
    if "scores" in names:
        assert names["scores"].summary["fid"] > 0
    for bits, half_width in names.get("history", ()):
        assert bits > 0 < half_width


def test_the_readme_is_short():
    assert len(README.split()) <= 1500


@pytest.fixture(scope="module")
def run_folders(runs, sketching, tmp_path_factory):
    """A run of every kind, with its page."""
    root = tmp_path_factory.mktemp("runs")
    folders = [runs.copied(kind, root) for kind in ("every-pair", "corrected")]
    with sketching():
        for folder in folders:
            write_report(folder)
    return folders


def test_the_table_of_the_run_folder_is_complete(run_folders):
    section = RUN_FOLDER.split("## The page")[0]
    named = {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` ", section, re.MULTILINE)}
    there = {path.name for folder in run_folders for path in folder.iterdir()}
    assert named == there | {RECORD}  # which the commands write


def test_the_columns_named_are_those_of_the_files(run_folders):
    for path in (path for folder in run_folders for path in folder.glob("*.csv")):
        row = next(line for line in RUN_FOLDER.splitlines() if line.startswith(f"| `{path.name}` "))
        assert f"`{', '.join(pd.read_csv(path))}`" in row


def test_the_figures_named_are_those_that_are_drawn(run_folders):
    section = RUN_FOLDER.split("## The page")[1].split("##")[0]
    named = set(re.findall(r"^\| `(\w+)` ", section, re.MULTILINE))
    drawn = {path.stem for folder in run_folders for path in (folder / "figures").iterdir()}
    assert drawn <= named
    assert named == drawn | {"generation", "interpolation", "difference"}


def test_ci_runs_the_test_command_of_the_readme():
    section = README.split("## Tests")[1]
    command = re.search(r"```sh\n(.*?)\n```", section)[1]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command
    assert command in (ROOT / ".github" / "workflows" / "check.yml").read_text()


@pytest.fixture(scope="module")
def fid_folder(runs, sketching, tmp_path_factory):
    folder = runs.copied("fid", tmp_path_factory.mktemp("documented"))
    with sketching():
        write_report(folder)
    return folder


def test_the_table_of_a_folder_of_fid_is_complete(fid_folder):
    section = RUN_FOLDER.split("## The folder of fid")[1].split("##")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    named = {name.rstrip("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == {path.name for path in fid_folder.iterdir()} | {RECORD}


@pytest.fixture(scope="module")
def score_folder(runs, sketching, tmp_path_factory):
    folder = runs.copied("score", tmp_path_factory.mktemp("documented"))
    with sketching():
        write_report(folder)
    return folder


def test_the_table_of_a_folder_of_score_is_complete(score_folder):
    section = RUN_FOLDER.split("## The folder of score")[1].split("## Other")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    named = {name.rstrip("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == {path.name for path in score_folder.iterdir()} | {RECORD}
    columns = pd.read_csv(score_folder / "per_image.csv").columns
    assert all(re.search(rf"\b{name}\b", section) for name in columns)
    summary = json.loads((score_folder / "summary.json").read_text())
    assert all(f"`{name}`" in section for name in summary["comparison"])


def test_the_scores_are_the_published_ones():
    summary = json.loads((ROOT / "results" / "quality" / "summary.json").read_text())
    named = re.search(
        r"`(FD\[\w+\])` ([\d.]+) \+- ([\d.]+), and ([\d.]+) \+- ([\d.]+) at",
        " ".join(SAMPLES.split()),
    )
    values = [summary[name] for name in ("fid", "fid_half_width")]
    values += [summary[name] for name in ("fid_infinity", "fid_infinity_half_width")]
    assert named.groups() == (summary["name"], *(f"{value:.2f}" for value in values))
    assert summary["checkpoint"]["sha256"] == load_checkpoint().sha256
    assert summary["name"] != "FID"


def test_its_columns_are_those_of_the_files(fid_folder):
    for name in ("per_image.csv", "fid_against_n.csv"):
        section = RUN_FOLDER.split("## The folder of fid")[1]
        row = next(line for line in section.splitlines() if line.startswith(f"| `{name}` | `"))
        columns = re.findall(r"`([^`]+)`", row)[1].split(", ")
        assert columns == list(pd.read_csv(fid_folder / name).columns)


def test_the_protocols_are_as_the_table_says():
    scores = SAMPLES.split("## Scores")[1]
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", scores, re.MULTILINE)
    assert {row[0] for row in rows} == set(PROTOCOLS)
    for name, resize, eight_bit, score in rows:
        protocol = PROTOCOLS[name]
        assert ("TensorFlow" in resize) == (protocol.resize == "legacy_tensorflow")
        assert eight_bit.startswith(protocol.eight_bit)
        splits = {"ddpm": "1 split", "clean": "10 splits", "adm": "splits of 5,000", "edm": "none"}
        assert score.strip().startswith(splits[name])
    counts = {name: len(of.splits_of(50_000)) - 1 for name, of in PROTOCOLS.items()}
    assert counts == {"ddpm": 1, "clean": 10, "adm": 10, "edm": -1}
