"""What the user's code imports: from its own folders, while it runs; and which files those are."""

import ast
import contextlib
import hashlib
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

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
