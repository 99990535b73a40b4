"""Every command, number and file name of the README holds."""

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from ddpmbench.cli.main import ddpmbench
from ddpmbench.questions.nll import evaluate_nll
from ddpmbench.questions.pictures import progressive_pictures
from ddpmbench.questions.report import write_report
from ddpmbench.report.printed import printed_comparison, printed_nll

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("ddpmbench")]


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command):
    _, name, *arguments = shlex.split(command)
    ddpmbench.commands[name].make_context(name, arguments)


def test_the_result_is_the_published_one():
    summary = json.loads((ROOT / "results" / "default" / "summary.json").read_text())
    assert blocks("text")[0] == printed_nll(summary, "table") + "\n"


def test_the_comparison_is_the_published_one():
    summary = json.loads((ROOT / "results" / "compare" / "summary.json").read_text())
    assert blocks("text")[1] == printed_comparison(summary, "table") + "\n"


def test_the_python_runs():
    (block,) = blocks("python")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert 0 < names["report"].summary["bits_per_dim"] < 8


@pytest.fixture(scope="module")
def run_folders(small_model, small_images, tmp_path_factory):
    """A run of every kind, with its page."""
    folder = tmp_path_factory.mktemp("runs")
    every = {"estimator": "every-pair", "draws": 1}
    one = small_images.subset(1)
    report = evaluate_nll(small_model, one, **every, out=folder / "every-pair")
    evaluate_nll(small_model, small_images, half_width=9, out=folder / "rotated-warp")
    progressive_pictures(small_model, one, report)
    for kind in ("every-pair", "rotated-warp"):
        write_report(folder / kind)
    return [folder / "every-pair", folder / "rotated-warp"]


def test_the_table_of_the_run_folder_is_complete(run_folders):
    section = README.split("## The run folder")[1].split("##")[0]
    named = {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` ", section, re.MULTILINE)}
    assert named == {path.name for folder in run_folders for path in folder.iterdir()}


def test_the_columns_named_are_those_of_the_files(run_folders):
    for path in (path for folder in run_folders for path in folder.glob("*.csv")):
        row = next(line for line in README.splitlines() if line.startswith(f"| `{path.name}` "))
        assert f"`{', '.join(pd.read_csv(path))}`" in row


def test_the_figures_named_are_those_that_are_drawn(run_folders):
    section = README.split("## The report")[1].split("##")[0]
    named = set(re.findall(r"^\| `(\w+)` ", section, re.MULTILINE))
    drawn = {path.stem for folder in run_folders for path in (folder / "figures").iterdir()}
    assert drawn <= named
    assert named == drawn | {"generation", "interpolation", "difference"}


def test_ci_runs_the_test_command_of_the_readme():
    section = README.split("## Tests")[1]
    command = re.search(r"```sh\n(.*?)\n```", section)[1]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command
    assert command in (ROOT / ".github" / "workflows" / "check.yml").read_text()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "results/README.md"])
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / document).parent.joinpath(target).exists()
