"""What a folder of images holds: every file is accounted for, whether it is read or not."""

import dataclasses
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ddpmbench.errors import printable
from ddpmbench.inputs.file_kinds import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    first_bytes,
    holds_data,
    is_system_file,
    kind_of,
    special_kind,
)
from ddpmbench.inputs.refusals import listed, refusal

_MOST_KINDS = 20
"""Endings that are counted one by one; the rarer ones are counted together."""
_ARCHIVE = "archive or array"
_HIDDEN = "hidden"
_OTHER = "other"


@dataclasses.dataclass(frozen=True, eq=False)
class FolderContents:
    """The files of a folder and its subfolders.

    Attributes:
        names: of the images to read, relative with slashes, in natural order: 2.png before 10.png.
        refused: a line for each image that cannot be read, by its name.
        passed_over: how many other files there are of each kind: by ending, "hidden" with those
            that systems leave, "archive or array", "no ending", and "other".
        archives: the names of the archives and arrays.
        folders: the names of the folders in the folder itself, but for hidden ones.
    """

    names: tuple[str, ...]
    refused: dict[str, str]
    passed_over: dict[str, int]
    archives: tuple[str, ...]
    folders: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the class folders, sorted; empty unless every image lies in one.

        A folder without an image that is read counts, too: the others keep their numbers.

        Source: torchvision's ImageFolder, which numbers them in this order.
        """
        return self.folders if all("/" in name for name in self.names) else ()

    @classmethod
    def of(cls, folder: Path) -> "FolderContents":
        """List a folder.

        Files without an image's ending are opened, to see whether they are images nevertheless.

        Raises:
            InputError: links lead in a circle, or a name is not UTF-8.
            OSError: a folder cannot be listed.
        """
        names: list[str] = []
        refused: dict[str, str] = {}
        archives: list[str] = []
        counts: Counter[str] = Counter()
        paths, folders = _files(folder, counts)
        for path in paths:
            kind, reason = _classified(path)
            name = path.relative_to(folder).as_posix()
            if kind == "read":
                names.append(_text(name))
            elif kind == "unread":
                refused[name] = str(refusal(path, reason))
            else:
                counts[kind] += 1
                if kind == _ARCHIVE:
                    archives.append(name)
        return cls(
            tuple(sorted(names, key=natural_key)),
            {name: refused[name] for name in sorted(refused, key=natural_key)},
            _commonest(counts),
            tuple(sorted(archives, key=natural_key)),
            tuple(sorted(map(_text, folders))),
        )


def class_folder(name: str) -> str:
    """The class folder of an image: the first folder of its name."""
    return name.split("/", 1)[0]


def passed_over_words(passed_over: Mapping[str, int], archives: Sequence[str]) -> str:
    """What was passed over, in words: "3 hidden, 1 archive or array (all.npz), 1 .csv"."""
    words = {kind: f"{count:,} {kind}" for kind, count in passed_over.items()}
    if archives:
        words[_ARCHIVE] += f" ({listed(archives)})"
    return ", ".join(words.values())


def natural_key(name: str) -> tuple[str, str]:
    """Sorts 2.png before 10.png, and what is in a folder together."""

    # One text, because lists of a name's parts would take many times its memory. A number is its
    # length and its digits; the end of a part comes before a number, which comes before text.
    def number(match: re.Match[str]) -> str:
        digits = match[0].lstrip("0")
        return f"\1{chr(len(digits))}{digits}"

    return re.sub("[0-9]+", number, name.replace("/", "\0")), name


def _files(folder: Path, counts: "Counter[str]") -> tuple[list[Path], list[str]]:
    """Every file but the hidden ones, which are counted; and the folders in the folder itself."""
    paths: list[Path] = []
    top: list[str] | None = None
    seen = set()
    # A link that leads back up would be walked until the path is too long for the system.
    for parent, subfolders, files in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen:
            raise refusal(parent, "links to a folder that is read already; remove the link")
        seen.add(real)
        counts[_HIDDEN] += sum(map(is_system_file, [*subfolders, *files]))
        subfolders[:] = [name for name in subfolders if not is_system_file(name)]
        top = [*subfolders] if top is None else top
        paths += [Path(parent, name) for name in files if not is_system_file(name)]
    return paths, top or []


def _classified(path: Path) -> tuple[str, str]:
    """Whether a file is "read", or "unread" and why, or else its kind for the count."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "read", ""
    if suffix in UNREAD_SUFFIXES:
        return "unread", f"{suffix} is not read from a folder; save it as PNG"
    if holds_data(suffix):
        return _ARCHIVE, ""
    kind = suffix if re.fullmatch(r"\.\w{1,12}", suffix) else _OTHER if suffix else "no ending"
    try:
        content = first_bytes(path)
    except OSError:
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            return "unread", f"is {special_kind(mode)}, not a file; remove it"
        return kind, ""
    group, name = kind_of(content) or ("", "")
    if group == "data":
        return _ARCHIVE, ""
    if group == "read":
        return "unread", f"is a {name} image without its ending; rename it to end in one, or remove"
    if group == "unread":
        return "unread", f"is an image ({name}) that is not read; save it as PNG, or remove it"
    return kind, ""


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except OSError:
        return None


def _commonest(counts: "Counter[str]") -> dict[str, int]:
    counts = +counts  # without those that are zero
    common = dict(counts.most_common(_MOST_KINDS))
    if rest := counts.total() - sum(common.values()):
        common[_OTHER] = common.get(_OTHER, 0) + rest
    return {printable(kind): count for kind, count in common.items()}


def _raise(error: OSError) -> None:
    raise error


def _text(name: str) -> str:
    # An id goes into tables, which are UTF-8: better refused now than at the end of a run.
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise refusal(os.fsencode(name), "the name is not UTF-8; rename the file") from error
    return name
