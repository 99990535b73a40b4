"""Compressed files: written whole or not at all, and nothing but what was written is read."""

import dataclasses
import itertools
import json
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from coded import OPTIONS, QUIET, SILENT, T, linear_model, restored
from normal_data import normal_images

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.codec import container
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.evaluate import coding
from ddpmbench.evaluate import decompress as decompressing
from ddpmbench.evaluate.decompress import first_image, write_images
from ddpmbench.execution.worker import RunListener
from ddpmbench.report.codec import codec_facts, codec_rows

CHECKED_TIMES = torch.tensor([0, T // 2 - 1, T - 1])
"""The times of the network check."""


def test_blocks_decode_alone(coded, model, images):
    assert [first_image(coded.file, block) for block in (None, 0, 2)] == [0, 0, 60]
    for block, part in enumerate((slice(0, 30), slice(30, 60), slice(60, 70))):
        result = restored(coded, model, block=block)
        np.testing.assert_array_equal(result.pixels, images.pixels[part])
        assert list(result.ids) == list(images.ids)[part]
    with pytest.raises(InputError, match="`block=3`"):
        restored(coded, model, block=3)


def test_an_interruption_changes_no_byte(coded, options, model, images, tmp_path):
    out = tmp_path / "images.ddpmc"

    def stop(now):
        if now.done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.compress(model, images, out, **options, listener=RunListener(progress=stop))
    assert not out.exists()
    partial = out.with_name("images.ddpmc.partial")
    partial.write_bytes(partial.read_bytes() + b"half a record")
    another, few = tmp_path / "run", images.subset(3)
    db.evaluate_nll(model, few, estimator="every-pair", draws=2, out=another, **SILENT)
    for others, changes, why in (
        (images, {"timesteps": 19}, "timesteps is 20 there, 19 here"),
        (normal_images(70, seed=1), {}, "sha256 is "),
        (images, {"run": another}, "run is [0-9a-f]{12} there, [0-9a-f]{12} here"),
        (images, {"run": None}, "run is [0-9a-f]{12} there, None here"),
    ):
        with pytest.raises(InputError, match=rf"was begun otherwise \({why}"):
            db.compress(model, others, out, **{**options, **changes})
    started, options["verify"] = [], "all"
    listener = RunListener(progress=started.append)
    report = db.compress(model, images, out, **options, listener=listener)
    assert started[0].done == 30
    assert out.read_bytes() == coded.file.read_bytes()
    before, after = coded.summary, report.summary
    assert (before["verified_blocks"], after["verified_blocks"]) == (1, 3)
    assert before["bits_per_dim"] == after["bits_per_dim"]
    assert before["num_evaluations"] == after["num_evaluations"] == 70 * 20
    assert before["seconds"] > 0
    assert after["seconds"] is after["seconds_per_image"] is None
    assert codec_facts(after)["device"].endswith(", continued")
    assert codec_rows(after)[0][2] == ""
    assert not partial.exists()
    with pytest.raises(InputError, match="is there already"):
        db.compress(model, images, out, **options)


@pytest.mark.parametrize(("verify", "is_seen"), [("none", False), ("first", True), ("all", True)])
def test_blocks_of_an_earlier_session_are_verified(
    coded, options, model, images, tmp_path, verify, is_seen
):
    partial = tmp_path / "file.partial"
    with_words(flip_last)(coded.file, tmp_path / "other").rename(partial)
    options["verify"] = verify
    if not is_seen:
        report = db.compress(model, images, tmp_path / "file", **options)
        assert report.summary["verified_blocks"] == 0
        return
    with pytest.raises(InputError, match="cannot be decoded"):
        db.compress(model, images, tmp_path / "file", **options)


def test_a_file_is_written_by_one_process_at_a_time(coded, options, model, images, tmp_path):
    out, seen = tmp_path / "file", []

    def again(now):
        if now.done > 30 and not seen:
            seen.append(now)
            with pytest.raises(InputError, match=r"file\.partial: another process writes it"):
                db.compress(model, images, out, **options)

    db.compress(model, images, out, **options, listener=RunListener(progress=again))
    assert seen
    assert out.read_bytes() == coded.file.read_bytes()


def test_a_file_that_appeared_meanwhile_is_kept(options, model, images, tmp_path):
    out = tmp_path / "file"
    listener = RunListener(progress=lambda now: out.write_bytes(b"kept"))
    with pytest.raises(InputError, match="is there already"):
        db.compress(model, images.subset(2), out, **options, listener=listener)
    assert out.read_bytes() == b"kept"


@pytest.mark.parametrize("order", [(0, 0, 1, 2), (0, 2), (0, 1, 2, 2)], ids=str)
def test_a_partial_file_of_other_blocks_is_refused(coded, options, model, images, tmp_path, order):
    partial = tmp_path / "file.partial"
    header, *blocks = sections(coded.file)
    partial.write_bytes(header + b"".join(blocks[i] for i in order))
    before = partial.read_bytes()
    with pytest.raises(InputError, match="blocks do not fit its header; remove it"):
        db.compress(model, images, tmp_path / "file", **options)
    assert partial.read_bytes() == before


def test_blocks_have_at_most_as_many_images_as_the_format_counts(options, model, images, tmp_path):
    out, most, few = tmp_path / "file", container.MOST, images.subset(2)
    options["timesteps"] = 2
    with pytest.raises(InputError, match=f"`block_images={most + 1}`"):
        db.compress(model, few, out, **{**options, "block_images": most + 1})
    report = db.compress(model, few, out, **{**options, "block_images": most})
    np.testing.assert_array_equal(restored(report, model).pixels, few.pixels)


def test_a_refused_compression_leaves_nothing(options, images, tmp_path):
    model = linear_model(schedule=NoiseSchedule.from_betas([1e-12] * 10))
    with pytest.raises(InputError, match="variance of the reverse process is too small"):
        db.compress(model, images.subset(2), tmp_path / "file", timesteps=10, **QUIET)
    model = linear_model()
    network, forward = type(model.network)(model), model.network.forward
    network.forward = lambda x_t, time: forward(x_t, time).where(
        torch.isin(time, CHECKED_TIMES).view(-1, 1, 1, 1), torch.nan
    )
    broken = dataclasses.replace(model, network=network)
    with pytest.raises(InputError, match="is not finite"):
        db.compress(broken, images.subset(2), tmp_path / "file", **options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_first(
    coded, model, images, small_checkpoint, tmp_path, capsys
):
    options = {**OPTIONS, "run": tmp_path / "not opened"}
    with pytest.raises(InputError, match="`out`: a name of more than 255 bytes"):
        db.compress(model, images, tmp_path / ("x" * 253), **options)  # too long with its ending
    (tmp_path / "file").touch()
    for folder, why in (("none", "no such file"), ("file", "not a directory")):
        with pytest.raises(InputError, match=f"`out` .*{folder}: cannot be written .{why}"):
            db.compress(model, images, tmp_path / folder / "x", **options)
        # of another model, which is not compared before
        command = ["decompress", str(coded.file), "--ckpt", str(small_checkpoint), "--out"]
        assert run([*command, str(tmp_path / folder / "x.npz")]) == 2
        assert why in capsys.readouterr().err
    assert run([*command, str(tmp_path / "file" / "x")]) == 2
    assert "not a directory" in capsys.readouterr().err
    assert run([*command, str(tmp_path / "new" / "x")]) == 2
    assert "is of another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda model: dataclasses.replace(model, sha256="1" * 64),
            "checkpoint is 0{12} there, 1{12} here",
        ),
        (lambda model: model.with_conventions(clip=False), "clip is True there, False here"),
        (lambda model: model.respaced(30), "schedule is "),
    ],
)
def test_other_models_are_refused(coded, model, change, why):
    with pytest.raises(InputError, match=rf"is of another model \({why}"):
        restored(coded, change(model))


@pytest.mark.parametrize(
    ("place", "name", "value", "why"),
    [
        (
            coding,
            "device_name",
            lambda device: "another",
            "device is cpu.* there, another here",
        ),
        (torch, "__version__", "9.9", "torch is .* there, 9.9 here"),
    ],
)
def test_other_machines_are_refused(coded, model, monkeypatch, place, name, value, why):
    monkeypatch.setattr(place, name, value)
    with pytest.raises(InputError, match=rf"is of another machine \({why}"):
        restored(coded, model)


def test_a_network_that_rounds_otherwise_is_noticed(coded, model):
    forward = model.network.forward
    network = type(model.network)(model)
    network.forward = lambda x_t, time: (
        forward(x_t, time) + 1e-3 * (~torch.isin(time, CHECKED_TIMES)).view(-1, 1, 1, 1)
    )
    with pytest.raises(InputError, match="block 0 does not decode"):
        restored(coded, dataclasses.replace(model, network=network))


def test_damaged_files_are_refused(coded, model, tmp_path):
    whole = coded.file.read_bytes()
    rng = np.random.default_rng(0)
    broken = [whole[:n] for n in (0, 5, 20, 500, len(whole) // 2, len(whole) - 1)]
    broken += [whole + b"more", b"no such file" * 10]
    header, first, second, *rest = sections(coded.file)
    broken.append(b"".join([header, second, first, *rest]))  # whole blocks in another order
    for bit in rng.integers(0, 8 * len(whole), 150):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        broken.append(bytes(flipped))
    path = tmp_path / "broken"
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            db.decompress(path, model, progress=False)
        assert str(path) in str(caught.value)


def sections(file):
    """The bytes of the header, of each block, and of the end."""
    whole = file.read_bytes()
    with container.Reader(file) as reader:
        ends = [0, reader.first, *(end for _, end in reader.whole_blocks()), len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(ends)]


def rewritten(file, path, change=lambda block: block, **changes):
    """The file with another header and other blocks, whose checksums hold."""
    with container.Reader(file) as reader:
        header = msgspec.structs.replace(reader.header, **changes)
        blocks = [block for block, _ in reader.whole_blocks()]
    writer = container.Writer(path.with_suffix(".partial"), header)
    for block in blocks:
        writer.add(change(block))
    writer.finish(path)
    return path


def with_header(**changes):
    return lambda file, path: rewritten(file, path, **changes)


def with_process(**changes):
    def change(file, path):
        with container.Reader(file) as reader:
            process = msgspec.structs.replace(reader.header.process, **changes)
        return rewritten(file, path, process=process)

    return change


def with_blocks(change):
    return lambda file, path: rewritten(file, path, change)


def with_words(words):
    return with_blocks(lambda block: dataclasses.replace(block, words=words(block.words)))


def with_record(**changes):
    def change(block):
        record = msgspec.structs.replace(
            block.record, **{name: of(block.record) for name, of in changes.items()}
        )
        return dataclasses.replace(block, record=record)

    return with_blocks(change)


def noise(words):
    return np.random.default_rng(0).integers(0, 1 << 16, len(words)).astype(np.uint16)


def flip_last(words):
    return np.append(words[:-1], words[-1] ^ 1)


HOSTILE = {
    "images": with_header(num_images=10**12),
    "blocks": with_header(block_images=10**9),
    "shape": with_header(shape=(1, 60_000, 60_000)),
    "labels": with_header(labels=b"\x78\x9c" + b"0" * 40),
    "ids": with_header(ids=b"\x78\x9c" + b"0" * 40),
    **{
        f"depth {depth}": with_header(model={"deep": msgspec.Raw(b"\x91" * depth + b"\xc0")})
        for depth in (500, 5000, 200_000)
    },
    "equal timesteps": with_process(timesteps=[1] * 20),
    "later timesteps": with_process(timesteps=[*range(T + 1, T + 21)]),
    "one variance": with_process(variances=[1.0]),
    **{
        f"variance {value}": with_process(variances=[1.0] * 19 + [value])
        for value in (1e-300, np.inf, np.nan, 1e300, 0.0)
    },
    "noise": with_words(noise),
    "nothing": with_words(lambda words: words[:0]),
    "zeros": with_words(np.zeros_like),
    "one word more": with_words(lambda words: np.append(np.uint16(7), words)),
    "other pixels": with_record(pixels=lambda record: record.pixels ^ 1),
    "one batch": with_record(
        batches=lambda record: [30] if record.num_images == 30 else record.batches
    ),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_whose_checksums_hold_is_refused(coded, model, tmp_path, change):
    path = change(coded.file, tmp_path / "file")
    anywhere = dataclasses.replace(model, image_size=None, channels=None)
    with pytest.raises(InputError, match=r"file: .*(damaged|checkpoint is None|cannot)"):
        db.decompress(path, anywhere, progress=False)


@pytest.mark.parametrize("batches", [[1 << 20] * 1000 + [1], [1] * 3 + [1 << 20, 1]], ids=len)
@pytest.mark.parametrize("kind", ["labels", "ids"])
def test_nothing_is_inflated_for_images_that_the_words_do_not_hold(
    coded, model, tmp_path, monkeypatch, batches, kind
):
    with container.Reader(coded.file) as reader:
        block = reader.block(0)
        header = msgspec.structs.replace(
            reader.header,
            num_images=sum(batches),
            block_images=sum(batches),
            **{kind: zlib.compress(bytes(1 << 20))},
        )
    record = msgspec.structs.replace(block.record, batches=batches)
    writer = container.Writer(tmp_path / "partial", header)
    writer.add(dataclasses.replace(block, record=record))
    writer.finish(tmp_path / "file")

    def inflated(*given):
        raise AssertionError("inflated")

    monkeypatch.setattr(decompressing, "_inflated", inflated)
    with pytest.raises(InputError, match="file: is damaged"):
        db.decompress(tmp_path / "file", model, progress=False)


def test_names_are_read_after_the_images(coded, model, tmp_path, monkeypatch):
    path = with_words(flip_last)(coded.file, tmp_path / "other")
    names = zlib.compress(json.dumps(["a"] * 70).encode())
    path = rewritten(path, tmp_path / "file", ids=names)
    monkeypatch.setattr(decompressing, "_inflated", None)
    with pytest.raises(InputError, match="block 0 does not decode"):
        db.decompress(path, model, progress=False)


NAMES = {
    "plain": (["b.JPG", "a", "été 2.png"], ["a.png", "b.png", "été 2.png"]),
    "numbers": (["7", "8", "9"], None),
    "twice": (["a.png", "A.jpg", "b"], None),
    **{name: (["a", name, "b"], None) for name in ("../x", "a\\b", ".", "", "a\0b", "x" * 300)},
}


@pytest.mark.parametrize(("ids", "names"), NAMES.values(), ids=range(len(NAMES)))
def test_a_png_has_the_name_of_its_image_where_that_is_safe(images, tmp_path, ids, names):
    few = dataclasses.replace(images.subset(3), ids=ids)
    out = tmp_path / "of" / "images"
    out.parent.mkdir()
    write_images(out, few, first=30)
    result = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    names = names or [f"0000{number}.png" for number in (30, 31, 32)]
    assert result == [Path("of", "images", name) for name in names]
    order = [1, 0, 2] if "b.png" in names else [0, 1, 2]
    np.testing.assert_array_equal(db.load_images(out).pixels, few.pixels[order])
