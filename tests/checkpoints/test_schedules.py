"""`schedule`: each form is its constructor, a file is its numbers, and all else is one line."""

import re
import struct
import warnings

import numpy as np
import pytest
import torch
from peers import refused

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints import schedules
from ddpmbench.checkpoints.schedule_tables import notes_on
from ddpmbench.checkpoints.schedules import betas_schedule, products_schedule, read_schedule
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

BETAS = np.linspace(1e-4, 0.02, 1000)
PRODUCTS = np.cumprod(1 - BETAS)
LINES = "\n".join(map(repr, BETAS.tolist()))
READ = ".npy, .npz, or text with one number per line"

# ---- names with numbers

ENDS = {"beta_start": 1e-3, "beta_end": 0.3}


@pytest.mark.parametrize(
    ("form", "schedule"),
    [
        ("linear:1000", NoiseSchedule.linear(1000)),
        ("linear:300:0.0002:0.03", NoiseSchedule.linear(300, beta_start=2e-4, beta_end=0.03)),
        ("linear:50:1e-4:2e-2", NoiseSchedule.linear(50, beta_start=1e-4, beta_end=0.02)),
        ("linear:30:0.01:0.01", NoiseSchedule.from_betas([0.01] * 30)),
        ("cosine:400", NoiseSchedule.cosine(400)),
        ("cosine:90:0:3", NoiseSchedule.cosine(90, offset=0.0, power=3.0)),
        ("sigmoid:400", NoiseSchedule.sigmoid(400)),
        ("sigmoid:90:0:4:0.9", NoiseSchedule.sigmoid(90, start=0.0, end=4.0, temperature=0.9)),
        ("scaled-linear:9:0.001:0.3", NoiseSchedule.scaled_linear(9, **ENDS)),
        ("sqrt-linear:70:0.03", NoiseSchedule.sqrt_linear(70, beta_end=0.03)),
        ("sigmoid-betas:8:0.001:0.3", NoiseSchedule.sigmoid_betas(8, **ENDS)),
        ("geometric:8:0.001:0.3", NoiseSchedule.geometric(8, **ENDS)),
        ("cosine-betas:8:0.001:0.3", NoiseSchedule.cosine_betas(8, **ENDS)),
        ("const:9:0.02", NoiseSchedule.from_betas([0.02] * 9)),
        ("warmup10:30:1e-4:0.02", NoiseSchedule.warmup(30, share=0.1)),
        ("warmup50:30:1e-4:0.02", NoiseSchedule.warmup(30, share=0.5)),
        # as the code of Ho et al. and diffusers call them
        ("quad:9:0.001:0.3", NoiseSchedule.scaled_linear(9, **ENDS)),
        ("scaled_linear:9:0.001:0.3", NoiseSchedule.scaled_linear(9, **ENDS)),
        ("squaredcos_cap_v2:400", NoiseSchedule.cosine(400)),
    ],
)
def test_a_name_is_its_constructor(form, schedule):
    torch.testing.assert_close(read_schedule(form).betas, schedule.betas, rtol=1e-12, atol=0)


FALLING = ("linear", "quad", "geometric", "warmup10", "warmup50", "sigmoid-betas", "cosine-betas")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("", ["linear:1000", "buffers"]),
        ("lineal:1000", ["lineal:1000", "cosine:T"]),
        *((form, ["linear:1000"]) for form in ("linear", "linear:")),
        *(
            (f"linear:{n}", [f"{n!r} is no number of steps"])
            for n in ("many", "1.0", "-5", "1", "²")
        ),
        *((f"{n}:1000001", ["too many steps", "1,000,000"]) for n in ("linear", "buffers")),
        ("cosine:" + "9" * 40, ["too many steps"]),
        ("linear:500", ["linear:500:0.0001:0.02", "linear:500:0.0002:0.04"]),
        ("linear:20", ["linear:20:0.0001:0.02 as Ho et al. have them"]),
        *((f"linear:{n}:0.0001", ["its last beta", f"linear:{n}:0.0001:0.02"]) for n in (9, 1000)),
        ("linear:9:0.0001:0.02:0.3", ["its first and its last beta, as in linear:9:0.0001:0.02"]),
        (
            "geometric:9:0.01:0.1:2:3",
            ["its first and its last beta, as in geometric:9:0.0001:0.02"],
        ),
        ("const:9:0.01:0.1", ["its beta, as in const:9:0.02"]),
        ("cosine:9:0.008:2:1", ["a power, as in cosine:9:0.008:2, or its steps alone"]),
        *(
            (f"{name}:30:0.02:0.001", ["is above the last", "smaller one first"])
            for name in FALLING
        ),
        ("const:100000:0.5", ["1e-30103", "smaller betas"]),
        ("linear:500:a:0.02", ["'a' is no number"]),
        ("linear:500:nan:0.02", ["nan is no beta", "between 0 and 1"]),
        ("geometric:50:0:0.02", ["0 is no beta"]),
        ("linear:500:0.0001:2", ["2 is no beta"]),
        ("cosine:500:0.008", ["an offset in [0, 1) and a power", "as in cosine:500"]),
        ("cosine:50:1.5:2", ["an offset in [0, 1)", "cosine:50:0.008:2"]),
        ("sigmoid:500:1", ["sigmoid:500:-3:3:1", "as in sigmoid:500"]),
        ("sigmoid:50:3:-3:1", ["two ends that rise", "sigmoid:50:-3:3:1"]),
        ("sigmoid:50:-3:3:nan", ["a temperature", "sigmoid:50:-3:3:1"]),
        ("scaled-linear:1000", ["its first and its last beta", "scaled-linear:1000:0.00085:0.012"]),
        ("sqrt-linear:1000", ["its last beta", "sqrt-linear:1000:0.02"]),
        ("const:50", ["its beta", "const:50:0.02"]),
        *((f"{name}:", ["name the file"]) for name in ("betas", "alphas_cumprod")),
        ("buffers", ["no betas"]),
        ("buffers:x", ["'x' is no number of steps"]),
    ],
)
def test_what_is_no_schedule(form, words):
    with refused(f"`schedule={form}`", *words):
        read_schedule(form)


@pytest.mark.parametrize("process", ["vp:3", "sub-vp:", "vp:ve:0.01:50:1000", "linear:1000"])
def test_what_is_no_process(process):
    with refused(f"`process={process}`: choose from vp, sub-vp, ve, ve:SIGMA_MIN"):
        CheckpointSettings(process=process)


@pytest.mark.parametrize("name", ["betas", "alphas_cumprod"])
def test_a_file_of_one_number_is_no_schedule(name, tmp_path):
    (tmp_path / "table.txt").write_text("0.5\n")
    with refused(f"`schedule={name}:{tmp_path}/table.txt`: holds one number", "two or more"):
        read_schedule(f"{name}:{tmp_path}/table.txt")


def test_a_schedule_or_a_time_that_is_named_again_is_noted_where_it_differs(small_checkpoint):
    stated = load_checkpoint(small_checkpoint)
    same = CheckpointSettings(schedule="linear:40:0.0025:0.5", time_input="index")
    assert load_checkpoint(small_checkpoint, same).notes == ()
    assert load_checkpoint(small_checkpoint, same).fingerprint == stated.fingerprint
    for field, value, note in (
        ("schedule", "cosine:60", "`schedule`: cosine of 60 steps overrides linear of 40 steps"),
        (
            "schedule",
            "linear:40:0.001:0.5",
            "`schedule`: linear of 40 steps overrides linear of 40 steps, with beta 0.001 "
            "at t = 1, not 0.0025",
        ),
        ("time_input", "one-based", "`time_input=one-based` overrides index"),
    ):
        other = load_checkpoint(small_checkpoint, CheckpointSettings(**{field: value}))
        assert other.notes == (note,)
        assert other.fingerprint != stated.fingerprint
    with refused(small_checkpoint, "leave out `schedule=buffers`"):
        load_checkpoint(small_checkpoint, CheckpointSettings(schedule="buffers"))


def test_a_convention_that_is_named_again_is_noted_where_it_differs(small_checkpoint):
    stated = load_checkpoint(small_checkpoint)
    own = {name: getattr(stated, name) for name in ("prediction", "variance", "clip")}
    assert load_checkpoint(small_checkpoint, CheckpointSettings(**own)).notes == ()
    variance = "fixed_small" if stated.variance == "fixed_large" else "fixed_large"
    for name, value, before in (
        ("prediction", "v", "eps"),
        ("variance", variance, stated.variance),
        ("clip", not stated.clip, "the checkpoint's own"),
    ):
        other = load_checkpoint(small_checkpoint, CheckpointSettings(**{name: value}))
        assert other.notes == (f"`{name}={value}` overrides {before}",)
        assert getattr(other, name) == value


# ---- files of numbers


def npy(header, numbers=BETAS):
    """A .npy file with a header of one's own before a thousand numbers."""
    padded = header.encode() + b" " * (-len(header) % 16) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + numbers.tobytes()


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': ({},), }}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("column.txt", LINES),
        ("row.txt", LINES.replace("\n", " ")),
        ("a comment.txt", "# betas\n" + LINES),
        ("windows.txt", LINES.replace("\n", "\r\n")),
        ("bom.txt", b"\xef\xbb\xbf" + LINES.encode()),
        ("upper.NPY", npy(HEADER.format("<f8", 1000))),
        ("big.npy", npy(HEADER.format(">f8", 1000), BETAS.astype(">f8"))),
    ],
)
def test_numbers_are_read_however_they_are_listed(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    np.testing.assert_array_equal(read_schedule(f"betas:{path}").betas, BETAS)
    assert read_schedule(f"betas:{path}").name == "betas"
    assert notes_on(f"betas:{path}") == ()


def zipped(change=lambda content, start: None):
    """A .npz file whose records of an entry are changed."""

    def write(path):
        np.savez(path, betas=BETAS)
        content = bytearray(path.read_bytes())
        for magic, offset in ((b"PK\x01\x02", 0), (b"PK\x03\x04", -2)):
            for match in re.finditer(magic, bytes(content)):
                change(content, match.start() + offset)
        return bytes(content)

    return write


def unknown_compression(content, start):
    content[start + 10 : start + 12] = struct.pack("<H", 99)


def encrypted(content, start):
    content[start + 8] |= 1


DAMAGED = ["or is damaged", READ]
DEEP = "{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 3000 + "1000,), }"
NO_FILES = {
    "two columns.csv": (LINES.replace("\n", ",0.5\n"), DAMAGED),
    "two columns.txt": (LINES.replace("\n", " 0.5\n") + " 0.5", ["(1000, 2)", "one row"]),
    "a last line of two.txt": (LINES + " 0.03", DAMAGED),
    "decimal commas.txt": (LINES.replace(".", ","), DAMAGED),
    "a gap.txt": ('0.1\n""\n0.2', DAMAGED),
    "a header.txt": ("beta\n" + LINES, DAMAGED),
    "a list.json": (str(BETAS.tolist()), DAMAGED),
    "long.txt": (f"0.1\n{'9' * 5000}", ["finite"]),
    "deep.json": ("[" * 100_000, DAMAGED),
    "nothing.txt": ("", ["(0,)"]),
    "utf-16.txt": (LINES.encode("utf-16"), DAMAGED),
    "a pickle.pt": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", DAMAGED),
    "huge.npy": (npy(HEADER.format("<f8", 10**12)), DAMAGED),
    "deep.npy": (npy(DEEP), DAMAGED),
    "header.npy": (npy("{'descr': '<q9', 'shape': (3,)}"), DAMAGED),
    "empty.npy": ("", DAMAGED),
    "empty.npz": ("", DAMAGED),
    "text.npy": (LINES, DAMAGED),
    "method.npz": (zipped(unknown_compression), DAMAGED),
    "locked.npz": (zipped(encrypted), DAMAGED),
    "cut.npz": (lambda path: zipped()(path)[:-50], DAMAGED),
    "bits.npz": (lambda path: zipped()(path).replace(b"\x3f", b"\x3e", 9), DAMAGED),
    "large.txt": (lambda path: b"\0" * (64 * 2**20 + 1), ["64 MB", READ]),
    "large.npy": (lambda path: b"\0" * (64 * 2**20 + 1), ["64 MB", READ]),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_a_file_that_is_no_table_is_one_short_line(tmp_path, name):
    content, words = NO_FILES[name]
    path = tmp_path / name
    content = content(path) if callable(content) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_schedule(f"betas:{path}")
    message = str(caught.value)
    assert all(word in message for word in (str(path), *words)), message
    assert len(message) < len(str(path)) + 200


ARRAYS = {
    "complex": (BETAS + 0j, ["complex128", "not real numbers"]),
    "words": (BETAS.astype(str), ["text", "as float64"]),
    "flags": (BETAS > 0, ["bool"]),
    "dates": (np.arange(9).astype("M8[s]"), ["datetime64"]),
    "fields": (np.zeros(9, dtype=[("a", "f8")]), ["not real numbers"]),
    "objects": (np.array([{}, {}]), ["no plain numbers", READ]),
    "whole numbers": (np.arange(1, 9), ["between 0 and 1"]),
    "16 bits": (BETAS.astype(np.float16), ["16 bits", "too few"]),
    "a column": (BETAS[:, None], ["(1000, 1)", "one row"]),
    "one number": (np.float64(0.1), ["()"]),
    "a row of one": (BETAS[:1], ["one number", "two or more"]),
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


def test_an_archive_is_read_by_the_name_of_its_array(tmp_path, monkeypatch):
    path = tmp_path / "two.npz"
    np.savez(path, first=np.ones(2), second=np.ones(2))
    with refused("holds first, second", "betas"):
        read_schedule(f"betas:{path}")
    np.savez(path, betas=BETAS, more=np.array([{}]), words=np.array(["a"]))
    np.testing.assert_array_equal(read_schedule(f"betas:{path}").betas, BETAS)
    assert notes_on(f"betas:{path}") == ()
    np.savez_compressed(path, betas=np.zeros(10**6))
    monkeypatch.setattr(schedules, "_MOST_BYTES", 10**6)
    with refused(path, "its array betas has more than"):
        read_schedule(f"betas:{path}")


@pytest.mark.parametrize(
    ("tables", "is_noted"),
    [
        ({"betas": BETAS.astype("f4"), "alphas_cumprod": PRODUCTS.astype("f4")}, False),
        ({"betas": BETAS, "alphas_cumprod": np.append(1, PRODUCTS)}, False),
        ({"betas": BETAS, "weights": PRODUCTS**2}, False),
        ({"betas": BETAS, "alphas_cumprod": PRODUCTS**2}, True),
        ({"betas": BETAS, "alphas_cumprod": np.sqrt(PRODUCTS)}, True),
        ({"betas": BETAS, "alpha_bar": PRODUCTS[:500]}, True),
    ],
)
def test_tables_that_contradict_each_other_are_a_note(tmp_path, tables, is_noted):
    np.savez(tmp_path / "tables.npz", **tables)
    for name in tables.keys() & {"betas", "alphas_cumprod"}:
        notes = notes_on(f"{name}:{tmp_path / 'tables.npz'}")
        assert len(notes) == is_noted
        assert all("contradict" in note and f"its {name} are taken" in note for note in notes)


# ---- what a row of numbers may be


def linear(total):
    return np.linspace(0.1, 20, total) / total


def quadratic(total):
    return np.linspace(0.3, 4.3, total) ** 2 / total


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("betas", BETAS[::-1], ["reverse them"]),
        *(
            ("betas", values, ["as in alphas_cumprod:FILE", "alphas are 1 - beta"])
            for values in (1 - BETAS, PRODUCTS, np.sqrt(PRODUCTS))
        ),
        ("betas", BETAS * np.nan, ["finite"]),
        ("betas", np.append(0, BETAS), ["0, which is for no noise: leave it out"]),
        ("betas", np.append([0, 0], BETAS), ["strictly between 0 and 1"]),
        ("betas", BETAS * 100, ["between 0 and 1"]),
        ("betas", np.full(1000, 0.5), ["of the data's variance", "look like something else"]),
        ("betas", 1 - NoiseSchedule.cosine(1000).alphas_cumprod.numpy(), ["something else"]),
        ("betas", 1 - np.cumprod(1 - 0.7 * linear(20)), ["look like something else"]),
        ("alphas_cumprod", BETAS, ["fall strictly"]),
        ("alphas_cumprod", PRODUCTS[::-1], ["fall strictly"]),
        ("alphas_cumprod", 1 - BETAS, ["look like alphas"]),
        ("alphas_cumprod", np.append(1, PRODUCTS), ["leave it out"]),
        ("alphas_cumprod", np.append([1, 1], PRODUCTS), ["fall strictly"]),
        ("alphas_cumprod", (0.999 * PRODUCTS).round(3), ["fall strictly"]),
        ("alphas_cumprod", PRODUCTS.astype(np.float16), ["16 bits"]),
    ],
)
def test_rows_that_are_something_else(name, values, words):
    with refused(*words):
        schedules.FILES[name](values.astype(np.float64))


OTHERS = {
    "1 - alphas_cumprod": (
        lambda betas: 1 - np.cumprod(1 - betas),
        lambda values: products_schedule(1 - values),
    ),
    "sqrt(1 - alphas_cumprod)": (
        lambda betas: np.sqrt(1 - np.cumprod(1 - betas)),
        lambda values: products_schedule(1 - values**2),
    ),
    "1 - beta, the last timestep first": (
        lambda betas: 1 - betas[::-1],
        lambda values: betas_schedule(1 - values[::-1]),
    ),
    "alphas_cumprod or its square roots": (
        lambda betas: np.cumprod(1 - betas)[::-1],
        lambda values: products_schedule(values[::-1]),
    ),
}


@pytest.mark.parametrize("like", OTHERS)
@pytest.mark.parametrize("shape", [linear, quadratic])
@pytest.mark.parametrize(("total", "dtype"), [(100, "f8"), (1000, "f4")])
def test_another_table_in_place_of_betas_is_refused(like, shape, total, dtype):
    """And may be given as what it is."""
    betas, (made_of, undone) = shape(total), OTHERS[like]
    values = made_of(betas).astype(dtype).astype(np.float64)
    with refused("look like something else", "as alphas_cumprod:FILE"):
        betas_schedule(values)
    np.testing.assert_allclose(undone(values).alphas_cumprod, np.cumprod(1 - betas), rtol=1e-2)


def test_square_roots_of_betas_are_refused():
    with refused("look like something else"):
        betas_schedule(np.sqrt(linear(1000)))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("total", [10, 20, 50, 1000])
def test_betas_that_rise_far_are_betas(total, dtype):
    """Those of every name that ends above one half."""
    far = [
        NoiseSchedule.cosine(total),
        NoiseSchedule.sigmoid(total),
        NoiseSchedule.sigmoid(total, start=0.0, end=3.0, temperature=0.3),
        NoiseSchedule.linear(1000).respaced(min(total, 999)),
        NoiseSchedule.cosine(1000).respaced(min(total, 999)),
    ]
    for end in (0.5, 0.95) if total <= 20 else ():
        names = ("linear", "scaled_linear", "geometric", "sigmoid_betas", "cosine_betas")
        far += [getattr(NoiseSchedule, n)(total, beta_start=1e-3, beta_end=end) for n in names]
        far.append(NoiseSchedule.sqrt_linear(total, beta_end=end))
    for schedule in far:
        betas = schedule.betas.numpy().astype(dtype).astype(np.float64)
        np.testing.assert_array_equal(betas_schedule(betas).betas, betas)


@pytest.mark.parametrize(
    "betas_of",
    [
        lambda total: np.linspace(1e-4, 0.02, total),
        lambda total: np.linspace(1e-2, 0.14, total) ** 2,
        lambda total: np.geomspace(1e-4, 0.02, total),
        lambda total: np.full(total, 0.01),
        lambda total: np.linspace(1e-4, 0.3, total) / total,
    ],
)
@pytest.mark.parametrize("total", [3, 10, 20])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_short_chain_ends_above_one_half(betas_of, total, dtype):
    betas = betas_of(total)
    products = np.cumprod(1 - betas)
    assert products[-1] > 0.5
    rounded = products.astype(dtype).astype(np.float64)
    np.testing.assert_allclose(products_schedule(rounded).alphas_cumprod, products, rtol=1e-6)
    if betas[0] < betas[-1]:
        with refused("look like alphas"):
            products_schedule((1 - betas).astype(dtype).astype(np.float64))
