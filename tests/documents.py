"""What stands in the documents: blocks of code, and the commands in them."""

import contextlib
import os
import re
import shlex
from pathlib import Path

from torch.distributed.run import get_args_parser

from ddpmbench.cli.main import ddpmbench

ROOT = Path(__file__).parents[1]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text):
    """What is typed in blocks of sh, a list of words each; lines may go on, and be joined by &&."""
    lines = [line for block in blocks(text, "sh") for line in _whole_lines(block)]
    return [shlex.split(part) for line in lines for part in line.split("&&")]


def _whole_lines(block):
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def check(words):
    """Fail unless the command parses; returns whether it is one that can be checked."""
    match words:
        case ["ddpmbench", name, *arguments]:
            ddpmbench.commands[name].make_context(name, list(arguments))
        case ["torchrun", *arguments]:
            parsed = torchrun_options(arguments)
            assert parsed.module
            check([parsed.training_script, *parsed.training_script_args])
        case ["python", script, *arguments]:
            check_script(script, arguments)
        case ["pytest", path, *_] if not path.startswith("-"):
            assert (ROOT / path).exists()
        case _:
            return False
    return True


def torchrun_options(arguments, environment=None):
    """What torchrun makes of its arguments, in an environment of that alone."""
    with _environment(environment or {}):
        return get_args_parser().parse_args(list(arguments))


def torchrun_variables():
    """The environment variables that torchrun takes options from."""
    actions = get_args_parser()._actions
    return {f"PET_{a.dest.upper()}" for a in actions if a.__class__.__module__.endswith("_util")}


@contextlib.contextmanager
def _environment(variables):
    before = dict(os.environ)
    kept = {name: value for name, value in before.items() if not name.startswith("PET_")}
    try:
        os.environ.clear()
        os.environ.update({**kept, **variables})
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def check_script(script, arguments):
    """A script of benchmarks/ with click's options; the options are found in its text."""
    text = (ROOT / script).read_text()
    for argument in arguments:
        if argument.startswith("--"):
            assert f'click.option("{argument}"' in text.replace("\n    ", ""), argument
