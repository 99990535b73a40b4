"""Docstrings state formulas as `.. math::`; the site shows them as display mathematics."""

import re
import textwrap

import griffe

_DIRECTIVE = re.compile(
    r"^([ \t]*)\.\. math::[ \t]*(.*)(?:\n|$)((?:[ \t]*\n)*(?:\1[ \t]+\S.*(?:\n|$))*)", re.MULTILINE
)
_ROLE = re.compile(r":math:`([^`]+)`")


def displayed(text: str) -> str:
    """The text with directives as display formulas between blank lines, and roles inline."""

    def formula(match: re.Match[str]) -> str:
        indent, first, rest = match.groups()
        lines = "\n".join(line for line in (first.strip(), textwrap.dedent(rest).strip()) if line)
        return "\n" + textwrap.indent(f"\\[\n{lines}\n\\]", indent) + "\n\n"

    return _ROLE.sub(r"$\1$", _DIRECTIVE.sub(formula, text))


class MathDirective(griffe.Extension):
    """Rewrites the docstrings of everything that is documented."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Called for each object when it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = displayed(obj.docstring.value)
