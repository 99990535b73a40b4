"""Run a user's Python file, with every error in it as one line."""

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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ddpmbench.errors import InputError

# ---- the state of the process

_DEFAULTS: dict[Callable[[Any], object], Callable[[], object]] = {
    torch.set_default_dtype: torch.get_default_dtype,
    torch.set_default_device: torch.get_default_device,
    torch.set_grad_enabled: torch.is_grad_enabled,
}
"""Setters of torch's defaults, and their getters."""

TorchDefaults = Mapping[Callable[[Any], object], object]


def torch_defaults() -> TorchDefaults:
    """The current defaults, by the functions that set them."""
    return {set_: get() for set_, get in _DEFAULTS.items()}


def changed_default(before: TorchDefaults) -> str | None:
    """The setter of a default that has changed, as `torch.set_default_dtype`; None if none has."""
    changed = (set_ for set_, get in _DEFAULTS.items() if get() != before[set_])
    return next((f"torch.{set_.__name__}" for set_ in changed), None)


@contextlib.contextmanager
def restored_process_state() -> Iterator[None]:
    """Context in which user code prints to standard error and reads an empty standard input.

    Afterwards torch's defaults and number of threads, the random number generators and the current
    folder are restored.
    """
    defaults, threads, folder = torch_defaults(), torch.get_num_threads(), os.getcwd()
    generators: tuple[Any, ...] = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    stdin = sys.stdin
    try:
        sys.stdin = io.StringIO()
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdin = stdin
        for set_, value in defaults.items():
            if _DEFAULTS[set_]() != value:
                set_(value)
        if torch.get_default_device().type == "cpu":
            torch.set_default_device(None)  # the same, without a mode that every call goes through
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if os.getcwd() != folder:
            os.chdir(folder)


_OTHER_SEED = 7919


@contextlib.contextmanager
def other_random_numbers() -> Iterator[None]:
    """Context in which the generators have another seed; see `restored_process_state`."""
    with restored_process_state():
        torch.manual_seed(_OTHER_SEED)
        np.random.seed(_OTHER_SEED)
        random.seed(_OTHER_SEED)
        yield


class RandomNumbersAreNaN(TorchFunctionMode):
    """Context in which torch's random numbers are NaN, except from an explicit generator.

    A network built inside shows its random initialization wherever no trained weight replaced it:
    in a parameter, a buffer, or the output.
    """

    _SAMPLERS = frozenset(
        {torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.normal, torch.bernoulli}
        | {Tensor.uniform_, Tensor.normal_, Tensor.bernoulli_, Tensor.exponential_}
        | {Tensor.log_normal_, Tensor.cauchy_, Tensor.geometric_}
        # Python functions whose inner calls bypass this mode
        | {nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.orthogonal_}
        | {nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.sparse_}
        | {nn.init.kaiming_uniform_, nn.init.kaiming_normal_}
    )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - the function's result
        """Call a function of torch."""
        named = kwargs or {}
        result = func(*args, **named)
        is_random = func in self._SAMPLERS and named.get("generator") is None
        if is_random and isinstance(result, Tensor) and result.is_floating_point():
            with torch.no_grad():
                result.fill_(torch.nan)
        return result


# ---- modules beside the file

_KEPT = frozenset({"ddpmbench", "torch", "numpy"}) | sys.stdlib_module_names
"""Packages that a user's folder of the same name does not hide."""


class UserModules:
    """The modules in some folders, which can be imported only inside `importable`.

    So networks from two folders can have different modules of one name.
    """

    def __init__(self, *folders: Path) -> None:
        """Search these folders in order."""
        self._folders = tuple(dict.fromkeys(folder.resolve() for folder in folders))
        self._modules: dict[str, types.ModuleType] = {}
        self._is_inside = False

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """Context in which the folders' modules hide imported ones; afterwards they are hidden.

        No compiled code is cached beside them: Python would use it for a new source of the same
        length written within the same second.
        """
        if self._is_inside:
            yield
            return
        path_before, before = list(sys.path), dict(sys.modules)
        keeps_compiled = not sys.dont_write_bytecode
        sys.dont_write_bytecode = True
        names = self._names()
        for name in before:
            if name.partition(".")[0] in names:
                del sys.modules[name]
        sys.modules.update(self._modules)
        importlib.invalidate_caches()
        sys.path[:0] = [str(folder) for folder in self._folders]
        self._is_inside = True
        try:
            yield
        finally:
            self._is_inside = False
            sys.dont_write_bytecode = not keeps_compiled
            now = {n: m for n, m in sys.modules.items() if before.get(n) is not m and self._has(m)}
            self._modules |= now
            for name in now:
                del sys.modules[name]
            sys.path[:] = path_before
            sys.modules.update({n: m for n, m in before.items() if n not in sys.modules})

    def sha256(self) -> str:
        """SHA-256, in hexadecimal, of the names and sources of the modules imported so far."""
        digest = hashlib.sha256()
        for name, module in sorted(self._modules.items()):
            file = getattr(module, "__dict__", {}).get("__file__")
            digest.update(name.encode() + b"\0")
            if isinstance(file, str) and Path(file).is_file():
                digest.update(Path(file).read_bytes())
        return digest.hexdigest()

    def _names(self) -> set[str]:
        files = {path.stem for folder in self._folders for path in folder.glob("*.py")}
        packages = {p.parent.name for folder in self._folders for p in folder.glob("*/__init__.py")}
        return (files | packages) - _KEPT

    def _has(self, module: types.ModuleType) -> bool:
        # A package without __init__.py has no file, but a path. `getattr` may run code.
        names = getattr(module, "__dict__", {})
        places = [names.get("__file__"), *(names.get("__path__") or ())]
        place = next((place for place in places if place), None)
        if not isinstance(place, str) or "site-packages" in Path(place).parts:
            return False
        return any(Path(place).resolve().is_relative_to(folder) for folder in self._folders)


# ---- the file


@dataclasses.dataclass(frozen=True)
class UserCode:
    """The user's code that builds a network.

    Attributes:
        name: `FILE.py:NAME`, as given.
        sha256: of the file.
        imported: SHA-256 of the modules beside it that it imported; empty if unknown.
    """

    name: str
    sha256: str
    imported: str = ""

    @property
    def builder(self) -> str:
        """NAME."""
        return self.name.rpartition(":")[2]


@dataclasses.dataclass(frozen=True, eq=False)
class UserFile:
    """A user's file that has been run.

    Attributes:
        code: its name and hash.
        path: of the file.
        module: the module that running it defined.
        modules: the modules it can import from its folders.
    """

    code: UserCode
    path: Path
    module: types.ModuleType
    modules: UserModules

    @property
    def value(self) -> object:
        """The value of NAME in the file."""
        return getattr(self.module, self.code.builder)

    @property
    def who(self) -> str:
        """The name of the file, to begin an error message."""
        return f"`network={self.code.name}`"

    def call(self, *arguments: object) -> object:
        """Call NAME.

        Raises:
            InputError: it fails; the message names the line.
        """
        value = self.value
        assert callable(value)
        return calling(lambda: value(*arguments), self.who)


@contextlib.contextmanager
def user_file(network: str) -> Iterator[UserFile]:
    """Run the file that `FILE.py:NAME` names; use its code inside this context.

    Imports are searched in its own folder, then in its package's and the current one, as in
    training. It prints to standard error.

    Raises:
        InputError: the file is missing, fails, or does not define NAME.
    """
    who = f"`network={network}`"
    try:
        path, name = _split(network)
        source = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"`network={network:.200}`: cannot be read ({error.strerror or error})"
        ) from error
    path, digest = path.resolve(), hashlib.sha256(source).hexdigest()
    module = types.ModuleType(f"ddpmbench_network_{digest[:16]}")
    module.__file__ = str(path)
    module.__package__, above = _package(path.parent)
    modules = UserModules(path.parent, above, Path.cwd())
    with restored_process_state(), modules.importable():
        # Classes are looked up by their module's name.
        sys.modules[module.__name__] = module
        calling(lambda: exec(compile(source, path, "exec"), vars(module)), who)
        if not hasattr(module, name):
            raise InputError(f"{who}: has no {name}; it defines {_defined(source)}")
        yield UserFile(UserCode(network, digest), path, module, modules)


def _package(folder: Path) -> tuple[str, Path]:
    """The dotted package name of a folder, and the folder that holds the package."""
    names: list[str] = []
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names), folder


def _split(network: str) -> tuple[Path, str]:
    file, _, name = network.rpartition(":")
    path, who = Path(file), f"`network={network}`"
    if not file and Path(network).is_file():
        known = _defined(Path(network).read_bytes())
        raise InputError(f"{who}: add what builds the network, {network}:NAME; it defines {known}")
    if not file or not name.isidentifier() or path.suffix != ".py":
        raise InputError(f"{who}: takes FILE.py:NAME, where NAME is a class or function in it")
    if not path.is_file():
        problem = "is no regular file" if path.exists() else "no such file"
        raise InputError(f"{who}: {path}: {problem}; name the file with its code")
    return path, name


def _defined(source: bytes) -> str:
    """The classes and functions in a file, without running it."""
    kinds = ast.ClassDef | ast.FunctionDef
    try:
        names = [node.name for node in ast.parse(source).body if isinstance(node, kinds)]
    except (SyntaxError, ValueError):
        names = []
    return ", ".join(names) or "no class and no function"


# ---- its errors

T = TypeVar("T")

_LONGEST = 300
_NOT_THE_USER_S = (
    *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    "<frozen ",
)


def calling(run: Callable[[], T], who: str) -> T:
    """The result of user code; any exception but Ctrl-C becomes one line, after `who`.

    Raises:
        InputError: it raised an exception, or tried to exit.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return run()
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # user code may raise anything
        raise InputError(f"{who}: {described(error)}") from error


@contextlib.contextmanager
def user_errors(who: str) -> Iterator[None]:
    """Context in which exceptions of user code become one line, after `who`; others pass.

    Raises:
        InputError: user code raised an exception, or tried to exit.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if not _place(error):
            raise
        raise InputError(f"{who}: {described(error)}") from error


def described(error: BaseException) -> str:
    """An error in one line: the user's file and line, the type and the message."""
    if isinstance(error, SystemExit):
        remedy = "take that out, or put it under if __name__ == '__main__'"
        return f"{_place(error)}ends the program; {remedy}"
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    text = text.replace("`", "'")  # backticks mark our parameters
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if isinstance(error, ModuleNotFoundError):
        text += "; modules are looked for in its own folder, the current one and PYTHONPATH"
    elif isinstance(error, ImportError) and "no known parent package" in text:
        text += "; an __init__.py in its folder makes a package of it"
    elif isinstance(error, EOFError):
        text += "; there is no input to read"
    elif isinstance(error, SyntaxError):
        text = " ".join(error.msg.split())
    return f"{_place(error)}{type(error).__name__}{': ' if text else ''}{text}"


def described_value(value: object) -> str:
    """The kind of a value that user code returned: `None`, `a tuple`, `an object of class Net`."""
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
    users = [f for f in frames if not f.filename.startswith(_NOT_THE_USER_S)]
    return f"{Path(users[-1].filename).name}, line {users[-1].lineno}: " if users else ""
