"""Running a file of the user's own code, so that whatever goes wrong in it is one line."""

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from ddpmbench.errors import InputError

T = TypeVar("T")

_LONGEST = 300
_KEPT = frozenset({"ddpmbench", "torch", "numpy"})
"""Packages that a folder of the same name does not hide."""
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


@dataclasses.dataclass(frozen=True, eq=False)
class OwnFile:
    """A file of the user's, after it has been run.

    Attributes:
        option: `FILE.py:NAME`.
        found: what the file calls NAME.
    """

    option: str
    found: object
    _sha256: str
    _imported: Callable[[], list[types.ModuleType]]

    @property
    def code(self) -> OwnCode:
        """What has been run up to now."""
        return OwnCode(self.option, _digest(self._sha256, self._imported()))

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
    the network was trained. What it prints goes to standard error.

    Args:
        option: as `--network` takes it.

    Raises:
        InputError: there is no such file, it fails, or has no such name.
    """
    path, name = _split(option)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"--network {option}: cannot be read ({error.strerror or error})"
        ) from error
    path, digest = path.resolve(), hashlib.sha256(source).hexdigest()
    module = types.ModuleType(f"ddpmbench_network_{digest[:16]}")
    module.__file__ = str(path)
    with _importing_from(path.parent, Path.cwd()) as imported:
        # Classes are looked up by their module's name, long after this.
        sys.modules[module.__name__] = module
        calling(lambda: exec(compile(source, path, "exec"), vars(module)), f"--network {option}")
        if not hasattr(module, name):
            raise InputError(f"--network {option}: has no {name}; it defines {_defined(source)}")
        yield OwnFile(option, getattr(module, name), digest, imported)


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


def described(error: BaseException) -> str:
    """File and line of the user's where it was raised, its kind and what it says, in one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if isinstance(error, ModuleNotFoundError):
        text += "; modules are looked for in its own folder, the current one and PYTHONPATH"
    if isinstance(error, SyntaxError):
        text = " ".join(error.msg.split())
    return f"{_place(error)}{type(error).__name__}{': ' if text else ''}{text}"


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USER_S)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""


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
        raise InputError(f"--network {option}: no such file as {path}")
    return path, name


def _defined(source: bytes) -> str:
    """The classes and functions of a file, without running it."""
    kinds = ast.ClassDef | ast.FunctionDef
    try:
        names = [node.name for node in ast.parse(source).body if isinstance(node, kinds)]
    except (SyntaxError, ValueError):
        names = []
    return ", ".join(names) or "no class and no function"


@contextlib.contextmanager
def _importing_from(*folders: Path) -> Iterator[Callable[[], list[types.ModuleType]]]:
    """Inside, modules come from these folders first, as if nothing of their names were imported.

    Gives what tells which modules have been imported from there.
    """
    path_before, before = list(sys.path), dict(sys.modules)
    beside = {name for folder in folders for name in _modules_in(folder)}
    for name in list(sys.modules):
        if name.partition(".")[0] in beside:
            del sys.modules[name]
    hidden = {name: module for name, module in before.items() if name not in sys.modules}
    importlib.invalidate_caches()
    sys.path[:0] = [str(folder) for folder in dict.fromkeys(folders)]

    def imported() -> list[types.ModuleType]:
        new = [m for name, m in sys.modules.items() if before.get(name) is not m]
        return [module for module in new if _is_under(module, folders)]

    try:
        yield imported
    finally:
        sys.path[:] = path_before
        sys.modules.update(hidden)


def _modules_in(folder: Path) -> set[str]:
    """Names of modules and packages in a folder that would be imported from there."""
    files = {path.stem for path in folder.glob("*.py")}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return (files | packages) - _KEPT - sys.stdlib_module_names


def _is_under(module: types.ModuleType, folders: tuple[Path, ...]) -> bool:
    file = getattr(module, "__file__", None)
    if not file or "site-packages" in Path(file).parts:
        return False
    return any(Path(file).resolve().is_relative_to(folder.resolve()) for folder in folders)


def _digest(of_file: str, imported: list[types.ModuleType]) -> str:
    """That of the file; with those it imports from beside it, of all of them."""
    paths = {Path(str(module.__file__)).resolve() for module in imported}
    files = [path for path in paths if path.suffix == ".py" and path.is_file()]
    others = {(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}
    others = {(name, digest) for name, digest in others if digest != of_file}
    if not others:
        return of_file
    return hashlib.sha256(repr((of_file, sorted(others))).encode()).hexdigest()
