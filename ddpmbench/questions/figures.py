"""Figures of a folder, drawn one after another, with progress."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from ddpmbench.report.card import Draw
from ddpmbench.runs import progress as running
from ddpmbench.runs.folder import write_figure


def write_figures(folder: Path, figures: Mapping[str, Draw], *, progress: bool) -> list[str]:
    """Draw figures into a folder; see `runs.folder.write_figure`.

    Args:
        folder: of the run.
        figures: what draws them, by name.
        progress: whether it shows on standard error how many are drawn.

    Returns:
        Their names.

    Raises:
        InputError: the folder cannot be written.
    """
    with _shown(progress) as update:
        for done, (name, draw) in enumerate(figures.items()):
            update(done, len(figures), name)
            write_figure(folder, name, *draw())
    return list(figures)


def _shown(shown: bool) -> contextlib.AbstractContextManager[running.Update]:
    if shown:
        return running.progress("figures", "figures")
    return contextlib.nullcontext(lambda done, total, remark: None)
