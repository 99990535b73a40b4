"""What a command says: messages name parameters, and a command has them as options."""

import re

import click

from ddpmbench.execution.progress import tell

_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")


def with_options(line: str, command: click.Command | None) -> str:
    """The line with the options of a command for the parameters that it names in backticks.

    `eta` becomes --eta, `num_images=0` becomes --num-images 0, and `clip=False` --no-clip. What
    the command has no option for stays as it is.
    """
    parameters = {p.name: p for p in command.params} if command is not None else {}

    def spelled(match: re.Match[str]) -> str:
        name, value = match.groups()
        parameter = parameters.get(name)
        if parameter is None:
            return match[0]
        if isinstance(parameter, click.Argument):
            return parameter.human_readable_name if value is None else value
        option = next(o for o in parameter.opts if o.startswith("--"))
        if isinstance(parameter, click.Option) and parameter.is_flag:
            is_off = value == "False" and parameter.secondary_opts
            return parameter.secondary_opts[0] if is_off else option
        return option if value is None else f"{option} {value}"

    return _PARAMETER.sub(spelled, line)


def note(line: str) -> None:
    """Say on standard error what may be worth knowing."""
    tell(f"Note: {with_options(line, _command())}")


def warn(line: str) -> None:
    """Say on standard error what is worth saying."""
    tell(f"Warning: {with_options(line, _command())}")


def _command() -> click.Command | None:
    context = click.get_current_context(silent=True)
    return context.command if context is not None else None
