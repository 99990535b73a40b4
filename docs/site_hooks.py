"""The site holds `results/` and the help of every command besides the pages of `docs/`."""

from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from ddpmbench.cli.main import ddpmbench

RESULTS = Path(__file__).parents[1] / "results"
_SHOWN = {".md", ".html", ".png", ".svg", ".csv", ".json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what `results/` publishes."""
    for path in sorted(p for p in RESULTS.rglob("*") if p.suffix in _SHOWN):
        uri = Path("results", path.relative_to(RESULTS)).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: object) -> str:
    """On the site `results/` lies beside the pages, in the repository above them."""
    if page.file.src_uri == "reference/commands.md":
        return markdown + command_help()
    if page.file.src_uri.startswith("results/"):
        return markdown.replace("/docs/", "/")
    return markdown.replace("](../../results/", "](../results/")


def command_help() -> str:
    """A section for each command: what `--help` prints."""
    group = click.Context(ddpmbench, info_name="ddpmbench", terminal_width=80)
    sections = []
    for name, command in ddpmbench.commands.items():
        context = click.Context(command, info_name=name, parent=group)
        sections.append(f"\n## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "".join(sections)
