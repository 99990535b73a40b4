"""Docstrings state formulas as `.. math::`; the site shows them as display mathematics."""

import re
import textwrap

import griffe

_DIRECTIVE = re.compile(
    r"^([ \t]*)\.\. math::[ \t]*\n(?:[ \t]*\n)+((?:\1[ \t]+\S.*\n?|[ \t]*\n)+)", re.M
)


def displayed(text: str) -> str:
    """The text with each directive as a display formula between blank lines."""

    def formula(match: re.Match[str]) -> str:
        indent, body = match.groups()
        lines = textwrap.dedent(body).strip()
        return textwrap.indent(f"\\[\n{lines}\n\\]\n\n", indent)

    return _DIRECTIVE.sub(formula, text)


class MathDirective(griffe.Extension):
    """Rewrites the docstrings of everything that is documented."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Called for each object when it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = displayed(obj.docstring.value)
