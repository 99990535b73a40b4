"""Reports that come back from a run folder: a summary and tables, and most with a page."""

import abc
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from ddpmbench.checksums import reading
from ddpmbench.execution.finished_runs import SUMMARY, FinishedRun
from ddpmbench.execution.folder import RunFolder
from ddpmbench.report.display import Shown


@dataclass(frozen=True)
class Table:
    """A csv file of a run folder.

    Attributes:
        file: its name.
        columns: types of the columns by name.
        optional: columns that it may lack.
        where: the field of the summary that is 0 or missing where there is no such file; "" where
            there always is.
    """

    file: str
    columns: Mapping[str, str]
    optional: Collection[str] = ()
    where: str = ""


class StoredReport(Shown):
    """A result with a run folder.

    Attributes:
        SCHEMA: that of its summary.
        TABLES: its tables, by the name of the attribute.
        summary: the object of `summary.json`.
        folder: its run folder; None if it was kept in memory.
    """

    SCHEMA: ClassVar[str]
    TABLES: ClassVar[Mapping[str, Table]] = {}

    summary: dict[str, Any]
    folder: Path | None

    @classmethod
    def finished(cls, path: Path, *, option: str = "") -> FinishedRun:
        """The finished run in a folder; see `FinishedRun.open`."""
        return FinishedRun.open(path, schema=cls.SCHEMA, option=option)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The report in the folder of a finished run.

        Raises:
            InputError: it holds none, or a file is missing or damaged; the message names it.
        """
        run = cls.finished(path)
        with reading(path / SUMMARY):
            report = cls(summary=run.summary, folder=path, **cls._read(run))  # type: ignore[call-arg]
            report._card()  # all of it that the summary lacks is missed here
        return report

    @classmethod
    def _read(cls, run: FinishedRun) -> dict[str, Any]:
        """What else the report holds, by the name of the attribute."""
        return {
            name: run.table(table.file, table.columns, optional=table.optional)
            if not table.where or run.summary.get(table.where)
            else None
            for name, table in cls.TABLES.items()
        }

    def write_tables(self, folder: RunFolder) -> None:
        """Write the tables that there are."""
        for name, table in self.TABLES.items():
            if (frame := getattr(self, name)) is not None:
                folder.write_frame(table.file, frame)


class PageReport(StoredReport):
    """A result that has a page.

    Attributes:
        TEMPLATE: the file's name in `report/templates`.
        FIGURES: captions of its figures, by name.
        STRIPS: title and text of its strips of pictures, by name.
    """

    TEMPLATE: ClassVar[str]
    FIGURES: ClassVar[Mapping[str, str]]
    STRIPS: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @abc.abstractmethod
    def _page(self) -> dict[str, Any]:
        """The values of the template, but for the figures and the environment."""

    def page(self, svgs: Mapping[str, str], environment: Mapping[str, Any] | None = None) -> str:
        """The HTML of the page.

        Args:
            svgs: its figures by name, of `FIGURES` and `STRIPS`; missing ones are left out.
            environment: the object of `environment.json`, if any.
        """
        from ddpmbench.report.html import drawn, rendered  # here, since it takes matplotlib

        figures = drawn(svgs, self.FIGURES, self.STRIPS)
        return rendered(self.TEMPLATE, environment=environment, **self._page(), **figures)
