"""Running a file of the user's own code, so that whatever goes wrong in it is one line."""

import ast
import contextlib
import dataclasses
import hashlib
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.own_imports import OwnImports
from ddpmbench.inputs.checkpoints.own_state import own_process_state

T = TypeVar("T")

_LONGEST = 300
_NOT_THE_USER_S = (
    *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[2]),
    "<frozen ",
)


@dataclasses.dataclass(frozen=True)
class OwnCode:
    """The user's own code that builds a network.

    Attributes:
        name: `FILE.py:NAME`, as given.
        sha256: of the file; of all of them, where it imports others beside it.
    """

    name: str
    sha256: str

    @property
    def builder(self) -> str:
        """NAME."""
        return self.name.rpartition(":")[2]


@dataclasses.dataclass(frozen=True, eq=False)
class OwnFile:
    """A file of the user's, after it has been run.

    Attributes:
        option: `FILE.py:NAME`.
        found: what the file calls NAME.
        imports: where it finds its own modules.
        path: of the file.
    """

    option: str
    found: object
    imports: OwnImports
    path: Path
    _sha256: str

    @property
    def code(self) -> OwnCode:
        """What it is, to be asked for after it was used."""
        return OwnCode(self.option, self.imports.digest(self.path, self._sha256))

    def call(self, *arguments: object) -> object:
        """What NAME gives for these arguments.

        Raises:
            InputError: it fails; the line says where.
        """
        found = self.found
        assert callable(found)
        return calling(lambda: found(*arguments), f"--network {self.option}")


@contextlib.contextmanager
def own_file(option: str) -> Iterator[OwnFile]:
    """The file that `FILE.py:NAME` names, run; it is to be used inside.

    What it imports is looked for in its own folder first, then in the current one, as it was when
    the network was trained; in a package, relative imports are its own. What it prints goes to
    standard error.

    Args:
        option: as `--network` takes it.

    Raises:
        InputError: there is no such file, it fails, or has no such name.
    """
    try:
        path, name = _split(option)
        source = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"--network {option:.200}: cannot be read ({error.strerror or error})"
        ) from error
    path, digest = path.resolve(), hashlib.sha256(source).hexdigest()
    module = types.ModuleType(f"ddpmbench_network_{digest[:16]}")
    module.__file__ = str(path)
    module.__package__, above = _package(path.parent)
    imports = OwnImports(path.parent, above, Path.cwd())
    with own_process_state(), imports.inside():
        # Classes are looked up by their module's name, long after this.
        sys.modules[module.__name__] = module
        calling(lambda: exec(compile(source, path, "exec"), vars(module)), f"--network {option}")
        if not hasattr(module, name):
            raise InputError(f"--network {option}: has no {name}; it defines {_defined(source)}")
        yield OwnFile(option, getattr(module, name), imports, path, digest)


def calling(run: Callable[[], T], who: str) -> T:
    """What code of the user's returns; whatever it raises becomes one line.

    Args:
        run: calls it.
        who: the option or the network to name.

    Raises:
        InputError: it raised something, or wanted to end the program.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return run()
    except SystemExit as error:
        raise InputError(
            f"{who}: {_place(error)}ends the program; what is not of the network belongs under "
            'if __name__ == "__main__":'
        ) from error
    except InputError:
        raise
    except Exception as error:  # the user's code raises whatever it likes
        raise InputError(f"{who}: {described(error)}") from error


@contextlib.contextmanager
def own_errors(who: str) -> Iterator[None]:
    """Inside, what code of the user's raises becomes one line; other errors are as they are.

    Args:
        who: the option or the network to name.

    Raises:
        InputError: code of the user's raised something, or wanted to end the program.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if not _place(error):
            raise
        raise InputError(f"{who}: {described(error)}") from error


def described(error: BaseException) -> str:
    """File and line of the user's where it was raised, its kind and what it says, in one line."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if isinstance(error, ModuleNotFoundError):
        text += "; modules are looked for in its own folder, the current one and PYTHONPATH"
    elif isinstance(error, ImportError) and "no known parent package" in text:
        text += "; an __init__.py in its folder makes a package of it"
    elif isinstance(error, EOFError):
        text += "; there is no input to read"
    if isinstance(error, SyntaxError):
        text = " ".join(error.msg.split())
    return f"{_place(error)}{type(error).__name__}{': ' if text else ''}{text}"


def described_value(value: object) -> str:
    """What code of the user's gave: `None`, `a tuple`, `an object of class Net`."""
    if value is None:
        return "None"
    kind = type(value)
    article = "an" if kind.__name__[0] in "aeio" else "a"
    is_plain = kind.__module__ == "builtins"
    return f"{article} {kind.__name__}" if is_plain else f"an object of class {kind.__name__}"


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USER_S)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""


def _package(folder: Path) -> tuple[str, Path]:
    """The name of the package that a folder is, and the folder that the package is in."""
    names: list[str] = []
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names), folder


def _split(option: str) -> tuple[Path, str]:
    file, _, name = option.rpartition(":")
    path = Path(file)
    if not file and Path(option).is_file():
        known = _defined(Path(option).read_bytes())
        raise InputError(
            f"--network {option}: name what builds the network too, as in {option}:NAME; it "
            f"defines {known}"
        )
    if not file or not name.isidentifier() or path.suffix != ".py":
        raise InputError(
            f"--network {option}: takes FILE.py:NAME, where NAME is a class or function in it"
        )
    if not path.is_file():
        what = "is no regular file" if path.exists() else "no such file"
        raise InputError(f"--network {option}: {path}: {what}; name the file with its code")
    return path, name


def _defined(source: bytes) -> str:
    """The classes and functions of a file, without running it."""
    kinds = ast.ClassDef | ast.FunctionDef
    try:
        names = [node.name for node in ast.parse(source).body if isinstance(node, kinds)]
    except (SyntaxError, ValueError):
        names = []
    return ", ".join(names) or "no class and no function"
