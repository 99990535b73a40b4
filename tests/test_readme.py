"""Every command, number and file name of the README holds."""

import json
import re
import shlex
from pathlib import Path

import pytest

from ddpmbench.cli.main import ddpmbench
from ddpmbench.evaluate import evaluate_nll
from ddpmbench.report.printed import printed_nll

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


def test_the_python_runs():
    (block,) = blocks("python")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert 0 < names["report"].summary["bits_per_dim"] < 8


def test_the_table_of_the_run_folder_is_complete(small_model, small_images, tmp_path):
    evaluate_nll(small_model, small_images.subset(1), draws=1, out=tmp_path)
    section = README.split("## The run folder")[1].split("##")[0]
    named = {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` ", section, re.MULTILINE)}
    assert named == {path.name for path in tmp_path.iterdir()}


def test_the_columns_named_are_those_of_the_files(small_model, small_images):
    report = evaluate_nll(small_model, small_images.subset(1), draws=1)
    for frame in (report.per_timestep, report.per_image):
        assert f"`{', '.join(frame)}`" in README


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
