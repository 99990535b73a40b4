"""The documentation site builds with every link and every documented name."""

import logging
import re

import pytest
from documents import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config

DOCUMENTED = re.findall(
    r"^::: ddpmbench\.(\w+)$", (ROOT / "docs/reference/api.md").read_text(), re.M
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    assert warnings == []
    return folder


def test_every_function_and_class_of_the_package_is_documented(site):
    page = (site / "reference/api/index.html").read_text()
    assert [name for name in DOCUMENTED if f'id="ddpmbench.{name}"' not in page] == []
    assert 'id="ddpmbench.NoiseSchedule.linear"' in page
    names = re.findall(r"import (\w+) as", (ROOT / "ddpmbench/__init__.pyi").read_text())
    functions = [name for name in names if name.islower() and name != "__version__"]
    assert sorted(set(functions) - set(DOCUMENTED)) == []


def test_formulas_of_docstrings_are_displayed(site):
    page = (site / "reference/api/index.html").read_text()
    assert ".. math::" not in page
    assert ":math:" not in page
    assert page.count("\\[") > 10


def test_the_help_of_every_command_is_there(site):
    page = (site / "reference/commands/index.html").read_text()
    names = (
        "nll",
        "rd",
        "ode",
        "likelihoods",
        "score",
        "sample",
        "fid",
        "compare",
        "inspect",
        "convert",
        "train",
        "speed",
    )
    for name in names:
        assert f"Usage: ddpmbench {name} " in page
