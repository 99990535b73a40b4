"""Tables in files: read as what they are, or refused in one line that says what is read."""

import json
import os
import re
import struct
import warnings

import numpy as np
import pytest
from peers import refused

from ddpmbench.checkpoints import schedules
from ddpmbench.checkpoints.schedule_tables import notes_on
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.errors import InputError

BETAS = np.linspace(1e-4, 0.02, 1000)
LINES = "\n".join(map(repr, BETAS.tolist()))
READ = ".npy, .npz, or text with one number a line"


def npy(header):
    """A .npy file with a header of one's own before a thousand numbers."""
    padded = header.encode() + b" " * (-len(header) % 16) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + BETAS.tobytes()


def zipped(tmp_path, change):
    """A .npz file whose records of an entry are changed: (its bytes, their index, their kind)."""
    np.savez(tmp_path / "whole.npz", betas=BETAS)
    content = bytearray((tmp_path / "whole.npz").read_bytes())
    for magic, offset in ((b"PK\x01\x02", 0), (b"PK\x03\x04", -2)):
        for match in re.finditer(magic, bytes(content)):
            change(content, match.start() + offset)
    return bytes(content)


def unknown_compression(content, start):
    content[start + 10 : start + 12] = struct.pack("<H", 99)


def encrypted(content, start):
    content[start + 8] |= 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("column.txt", LINES),
        ("column.csv", LINES.replace("\n", ",\n") + ",\n"),
        ("row.csv", LINES.replace("\n", ",")),
        ("windows.txt", LINES.replace("\n", "\r\n")),
        ("bom.txt", b"\xef\xbb\xbf" + LINES.encode()),
        ("list.json", json.dumps(BETAS.tolist(), indent=1)),
        ("printed.txt", str(BETAS.tolist())),
        ("upper.NPY", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000,), }")),
        ("wider.npy", npy("{'descr': '>f8', 'fortran_order': False, 'shape': (1000,), }")),
    ],
)
def test_numbers_are_read_however_they_are_listed(tmp_path, name, content):
    if name == "wider.npy":
        content = content.replace(BETAS.tobytes(), BETAS.astype(">f8").tobytes())
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    np.testing.assert_array_equal(read_schedule(f"betas:{path}").betas, BETAS)


TEXTS = {
    "two columns": (
        "\n".join(f"{b!r},{1 - b!r}" for b in BETAS.tolist()),
        ["1,000 lines", "2 numbers"],
    ),
    "an index": ("\n".join(f"{i} {b!r}" for i, b in enumerate(BETAS.tolist())), ["1,000 lines"]),
    "two rows": (LINES.replace("\n", " ") + "\n" + LINES.replace("\n", " "), ["2 lines", "1,000"]),
    "a last line of two": (LINES + " 0.03", ["1,000 lines", "2 numbers"]),
    "decimal commas": (LINES.replace(".", ","), ["1,000 lines", "2 numbers"]),
    "a field without a number": ("0.1,,0.2", ["line 1: '' is no number", READ]),
    "a header": ("beta\n" + LINES, ["line 1: 'beta' is no number", READ]),
    "a word": ("0.1 0.2 many", ["line 1: 'many'", READ]),
    "a comment": ("# betas\n" + LINES, ["line 1: '#' is no number", READ]),
    "a comment behind": (LINES + " # the last", ["line 1000: '#' is no number", READ]),
    "semicolons": (LINES.replace("\n", ";"), ["line 1: '0.0001;0.000119", "...' is no", READ]),
    "a dict": (json.dumps({"betas": BETAS.tolist()}), ["line 1", READ]),
    "nested lists": (json.dumps([BETAS.tolist()]), ["no plain list", READ]),
    "a list of words": (json.dumps(["0.1", "0.2"]), ["no plain list", READ]),
    "a list of flags": ("[true, false]", ["no plain list", READ]),
    "a long list": (f"[0.1, {'9' * 5000}]", ["no plain list", READ]),
    "a deep list": ("[" * 100_000, ["no plain list", READ]),
    "a list cut short": ("[0.1, 0.2", ["no plain list", READ]),
    "nothing": ("", ["(0,)"]),
    "utf-16": (LINES.encode("utf-16"), ["UTF-8", READ]),
    "utf-16 without a mark": (LINES.encode("utf-16-le"), ["line 1", READ]),
    "a pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", ["UTF-8", READ]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_that_is_no_table_is_one_short_line(tmp_path, case):
    content, words = TEXTS[case]
    path = tmp_path / "table.pt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_schedule(f"betas:{path}")
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message) < len(str(path)) + 200


ARRAYS = {
    "complex": (BETAS + 1j * BETAS, ["complex128", "not real numbers"]),
    "complex without an imaginary part": (BETAS + 0j, ["complex128"]),
    "words": (BETAS.astype(str), ["text", "as float64"]),
    "bytes": (BETAS.astype("S"), ["text", "as float64"]),
    "flags": (BETAS > 0, ["bool"]),
    "dates": (np.arange(9).astype("M8[s]"), ["datetime64"]),
    "fields": (np.zeros(9, dtype=[("a", "f8")]), ["not real numbers"]),
    "objects": (np.array([{}, {}]), ["no plain numbers", READ]),
    "whole numbers": (np.arange(1, 9), ["between 0 and 1"]),
    "16 bits": (BETAS.astype(np.float16), ["16 bits", "too few"]),
    "a column": (BETAS[:, None], ["(1000, 1)"]),
    "two rows": (np.stack([BETAS, BETAS]), ["(2, 1000)"]),
    "one number": (np.float64(0.1), ["()"]),
}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_of_another_kind_are_no_table(tmp_path, case, suffix):
    values, words = ARRAYS[case]
    path = tmp_path / f"table.{suffix}"
    if suffix == "npy":
        np.save(path, values, allow_pickle=True)
    else:
        np.savez(path, betas=values)
    with warnings.catch_warnings(), refused(path, *words):
        warnings.simplefilter("error")
        read_schedule(f"betas:{path}")


def test_products_that_were_rounded_to_16_bits_are_not_cut(tmp_path):
    half = np.cumprod(1 - BETAS).astype(np.float16)
    assert half[0] == 1
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / "table.npy", half.astype(dtype))
        with refused("16 bits"):
            read_schedule(f"alphas_cumprod:{tmp_path / 'table.npy'}")
    np.save(tmp_path / "table.npy", np.append([1.0, 1.0], np.cumprod(1 - BETAS)))
    with refused("do not fall strictly"):
        read_schedule(f"alphas_cumprod:{tmp_path / 'table.npy'}")


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
DEEP = "{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 3000 + "1000,), }"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("huge.npy", lambda folder: npy(HUGE)),
        ("deep.npy", lambda folder: npy(DEEP)),
        ("empty.npy", lambda folder: b""),
        ("empty.npz", lambda folder: b""),
        ("text.npy", lambda folder: LINES.encode()),
        ("header.npy", lambda folder: npy("{'descr': '<q9', 'shape': (3,)}")),
        ("method.npz", lambda folder: zipped(folder, unknown_compression)),
        ("locked.npz", lambda folder: zipped(folder, encrypted)),
        ("cut.npz", lambda folder: zipped(folder, lambda *_: None)[:-50]),
        ("bits.npz", lambda folder: zipped(folder, lambda *_: None).replace(b"\x3f", b"\x3e", 9)),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content(tmp_path))
    with refused(path, "or is damaged", READ):
        read_schedule(f"betas:{path}")


def test_an_archive_is_read_by_the_name_of_its_array(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, first=np.ones(2), second=np.ones(2))
    with refused("holds first, second", "betas"):
        read_schedule(f"betas:{path}")
    np.savez(path, betas=BETAS, more=np.array([{}]), words=np.array(["a"]))
    np.testing.assert_array_equal(read_schedule(f"betas:{path}").betas, BETAS)
    assert notes_on(f"betas:{path}") == ()
    (tmp_path / "other.npy").write_bytes(path.read_bytes())
    np.testing.assert_array_equal(read_schedule(f"betas:{tmp_path / 'other.npy'}").betas, BETAS)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder.npy").mkdir()
    kinds = {
        tmp_path / "pipe": "a named pipe",
        "/dev/zero": "a device",
        tmp_path / "folder.npy": "a folder",
        tmp_path / "none.npy": "No such file",
        tmp_path / ("x" * 300): "name too long",
        "a\0b": "null",
    }
    for path, word in kinds.items():
        with refused("cannot be read", word, READ):
            read_schedule(f"betas:{path}")


@pytest.mark.parametrize("suffix", ["npy", "npz", "txt"])
def test_what_is_larger_than_any_schedule_is_not_read(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"table.{suffix}"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    with refused(path, "64 MB", READ):
        read_schedule(f"betas:{path}")


def test_an_array_that_unpacks_to_more_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "table.npz"
    np.savez_compressed(path, betas=np.zeros(10**6))
    monkeypatch.setattr(schedules, "_MOST_BYTES", 10**6)
    assert path.stat().st_size < 10**6
    with refused(path, "its array betas has more than"):
        read_schedule(f"betas:{path}")


# ---- two tables in one file


PRODUCTS = np.cumprod(1 - BETAS)


@pytest.mark.parametrize(
    ("tables", "is_noted"),
    [
        ({"betas": BETAS, "alphas_cumprod": PRODUCTS}, False),
        ({"betas": BETAS.astype("f4"), "alphas_cumprod": PRODUCTS.astype("f4")}, False),
        ({"betas": BETAS, "alphas_cumprod": np.append(1, PRODUCTS)}, False),
        ({"betas": BETAS, "weights": PRODUCTS**2}, False),
        ({"betas": BETAS}, False),
        ({"betas": BETAS, "alphas_cumprod": PRODUCTS**2}, True),
        ({"betas": BETAS, "alphas_cumprod": np.sqrt(PRODUCTS)}, True),
        ({"betas": BETAS, "alpha_bar": PRODUCTS[:500]}, True),
    ],
)
def test_tables_that_contradict_each_other_are_a_note(tmp_path, tables, is_noted):
    np.savez(tmp_path / "tables.npz", **tables)
    for name in tables.keys() & {"betas", "alphas_cumprod"}:
        form = f"{name}:{tmp_path / 'tables.npz'}"
        notes = notes_on(form)
        assert len(notes) == is_noted
        assert all("contradict" in note and f"its {name} are taken" in note for note in notes)


def test_other_forms_have_no_notes(tmp_path):
    (tmp_path / "table.txt").write_text(LINES)
    for form in ("linear:1000", "buffers", "", f"betas:{tmp_path / 'table.txt'}"):
        assert notes_on(form) == ()
