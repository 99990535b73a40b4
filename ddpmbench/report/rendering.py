"""What pages are made of: templates, figures in their colors, numbers as they are shown."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ddpmbench.report.figures.style import NORMAL
from ddpmbench.report.inline_svg import inline_panels
from ddpmbench.report.numbers import digits_by
from ddpmbench.version import __version__

UNKNOWN = "unknown"
"""What stands for a number that is not known."""


def rendered(template: str, **values: object) -> str:
    """A page.

    Args:
        template: the file's name in `report/templates`.
        **values: what it shows; a name that it uses and that is missing is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddpmbench", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": _fixed,
        "signed": _signed,
        "percent": _percent,
        "count": _count,
        "times": _times,
        "half_width": _half_width,
        "digits": digits_by,
        "fixed_half_width": lambda value: _fixed(value, digits_by(value)),
    }
    css = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    page = environment.get_template(template)
    return page.render(css=Markup(css), version=__version__, **values)


def panels(svg: str, name: str, label: str) -> list[Markup]:
    """The panels of a figure, safe to put into a page; see `inline_svg.inline_panels`."""
    return [Markup(panel) for panel in inline_panels(svg, name, label)]


def made(record: Mapping[str, Any] | None) -> dict[str, object]:
    """What the part of a page on how a result was made shows.

    Args:
        record: the object of `environment.json`; None where there is none.
    """
    if record is None:
        return {"environment": None}
    machine = {
        "source revision": record.get("git_revision") or "an installed package",
        "platform": record.get("platform") or UNKNOWN,
        "device": record.get("device") or UNKNOWN,
    }
    arguments = record["arguments"]
    given = arguments.get("given") or []
    return {
        "environment": machine,
        "versions": {name: value or "not there" for name, value in record["versions"].items()},
        "command": shlex.join(map(str, given)),
        "resolved": {
            name: "none" if value is None else value
            for name, value in (arguments.get("resolved") or {}).items()
        },
    }


# ---- numbers as they are printed


def _fixed(value: float | None, digits: int = 4) -> str:
    return UNKNOWN if value is None or math.isnan(value) else _minus(f"{value:,.{digits}f}")


def _signed(value: float | None, digits: int = 4) -> str:
    return UNKNOWN if value is None or math.isnan(value) else _minus(f"{value:+,.{digits}f}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def _count(value: int) -> str:
    return f"{value:,}"


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _half_width(standard_error: float | None) -> float | None:
    if standard_error is None or math.isnan(standard_error):
        return None
    return NORMAL * standard_error
