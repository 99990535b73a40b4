"""Running a file of the user's own code, so that whatever goes wrong in it is one line."""

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import io
import os
import random
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch

from ddpmbench.errors import InputError


@dataclasses.dataclass(frozen=True)
class TorchDefaults:
    """What every tensor made after it, and every call, depends on.

    Attributes:
        dtype: of tensors that do not name theirs.
        device: likewise.
        grad: whether gradients are recorded.
    """

    dtype: torch.dtype
    device: torch.device
    grad: bool

    @classmethod
    def now(cls) -> Self:
        """Those in force."""
        return cls(torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled())

    def restore(self) -> None:
        """Set them again, where they are others."""
        now = type(self).now()
        if now.dtype is not self.dtype:
            torch.set_default_dtype(self.dtype)
        if now.device != self.device:
            torch.set_default_device(self.device)
        if now.grad is not self.grad:
            torch.set_grad_enabled(self.grad)

    def changed(self) -> str | None:
        """The call that would have changed one of them; None where all are the same."""
        now = type(self).now()
        calls = {
            "torch.set_default_dtype": now.dtype is not self.dtype,
            "torch.set_default_device": now.device != self.device,
            "torch.set_grad_enabled": now.grad is not self.grad,
        }
        return next((name for name, is_changed in calls.items() if is_changed), None)


@contextlib.contextmanager
def own_process_state() -> Iterator[None]:
    """Inside, code of the user's prints to standard error and reads an empty standard input.

    Afterwards the defaults of torch, its threads, the random number generators and the current
    folder are as they were.
    """
    defaults, threads, folder = TorchDefaults.now(), torch.get_num_threads(), os.getcwd()
    generators: tuple[Any, ...] = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    stdin = sys.stdin
    try:
        sys.stdin = io.StringIO()
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdin = stdin
        defaults.restore()
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if os.getcwd() != folder:
            os.chdir(folder)


_KEPT = frozenset({"ddpmbench", "torch", "numpy"})
"""Packages that a folder of the same name does not hide."""


class OwnImports:
    """Modules of some folders, which are found only where `inside` is entered.

    They are kept from one time to the next, and another file's of the same names are not seen.
    """

    def __init__(self, *folders: Path) -> None:
        """Take what is in these folders; the first that has a module is asked for it."""
        self._folders = tuple(dict.fromkeys(folders))
        self._modules: dict[str, types.ModuleType] = {}
        self._is_inside = False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Inside, modules come from the folders first, as if none of their names were imported."""
        if self._is_inside:
            yield
            return
        path_before, before = list(sys.path), dict(sys.modules)
        beside = {name for folder in self._folders for name in _modules_in(folder)}
        for name in before:
            if name.partition(".")[0] in beside:
                del sys.modules[name]
        hidden = {name: module for name, module in before.items() if name not in sys.modules}
        sys.modules.update(self._modules)
        importlib.invalidate_caches()
        sys.path[:0] = [str(folder) for folder in self._folders]
        self._is_inside = True
        try:
            yield
        finally:
            self._is_inside = False
            self._modules |= {
                name: module
                for name, module in sys.modules.items()
                if before.get(name) is not module and self._has(module)
            }
            sys.path[:] = path_before
            sys.modules.update(hidden)

    def digest(self, path: Path, of_file: str) -> str:
        """That of a file; with those it imports from the folders, of all of them.

        Counted are modules that were imported and, as a function may import when it is called,
        those that an import statement anywhere names. To be called after `inside`.

        Args:
            path: the file.
            of_file: its own sha256, in hexadecimal digits.
        """
        paths = {Path(str(module.__file__)).resolve() for module in self._modules.values()}
        files = {path for path in paths if path.suffix == ".py" and path.is_file()}
        files |= self._named({path, *files})
        others = {(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files}
        others = {(name, digest) for name, digest in others if digest != of_file}
        if not others:
            return of_file
        return hashlib.sha256(repr((of_file, sorted(others))).encode()).hexdigest()

    def _has(self, module: types.ModuleType) -> bool:
        file = getattr(module, "__file__", None)
        if not file or "site-packages" in Path(file).parts:
            return False
        return any(Path(file).resolve().is_relative_to(f.resolve()) for f in self._folders)

    def _named(self, files: set[Path]) -> set[Path]:
        """Files of the folders that import statements of these name, and theirs in turn."""
        found, to_read = set[Path](), list(files)
        while to_read:
            named = set(self._named_in(to_read.pop())) - found - files
            found |= named
            to_read += named
        return found

    def _named_in(self, path: Path) -> Iterator[Path]:
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._files_of(alias.name.split("."), self._folders)
            elif isinstance(node, ast.ImportFrom):
                parts = node.module.split(".") if node.module else []
                up = (path.parents[min(node.level, len(path.parents)) - 1],)
                for alias in node.names:
                    roots = up if node.level else self._folders
                    yield from self._files_of([*parts, alias.name], roots)

    @staticmethod
    def _files_of(parts: list[str], roots: tuple[Path, ...]) -> Iterator[Path]:
        """Those of a module, and of the packages that it is in."""
        if parts[0] in _KEPT | sys.stdlib_module_names:
            return
        for root in roots:
            found = []
            for depth in range(1, len(parts) + 1):
                place = root.joinpath(*parts[:depth])
                files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
                found += [file.resolve() for file in files if file.is_file()]
            if found:
                yield from found
                return


def _modules_in(folder: Path) -> set[str]:
    """Names of modules and packages in a folder that would be imported from there."""
    files = {path.stem for path in folder.glob("*.py")}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return (files | packages) - _KEPT - sys.stdlib_module_names


T = TypeVar("T")

_LONGEST = 300
_NOT_THE_USER_S = (
    *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
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
