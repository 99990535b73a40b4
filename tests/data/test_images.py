"""The same images are the same set, whatever holds them: files, folders, arrays."""

import base64
import dataclasses
import hashlib
import io
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import FORMS, random_images, refused, rgb, save_as
from PIL import Image

from ddpmbench.data import images
from ddpmbench.data.images import ImageSet, packed
from ddpmbench.data.load import load_images
from ddpmbench.errors import InputError
from ddpmbench.evaluate.nll import evaluate_nll


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 12),
    size=st.tuples(st.integers(1, 9), st.integers(5, 9)),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_the_form_of_the_input_cannot_matter(tmp_path_factory, count, size, channels, seed):
    shape = (count, *size) if channels == 1 else (count, *size, channels)
    pixels = random_images(*shape, seed=seed)
    expected = np.ascontiguousarray(pixels.reshape(count, *size, channels).transpose(0, 3, 1, 2))
    digest = hashlib.sha256(str((count, channels, *size)).encode() + expected.tobytes()).hexdigest()
    folder = tmp_path_factory.mktemp("forms")
    for form in FORMS:
        path = save_as(folder, form, pixels)
        loaded = load_images(path)
        np.testing.assert_array_equal(loaded.pixels, expected)
        assert loaded.pixels.flags.c_contiguous
        assert loaded.sha256 == digest
        assert list(loaded.ids) == [f"{i}.bmp" if path.is_dir() else str(i) for i in range(count)]
        assert (loaded.source, loaded.split, loaded.labels) == (str(path), None, None)
    pictures = [Image.fromarray(image) for image in pixels]
    arrays = [pixels, np.asfortranarray(pixels), torch.from_numpy(expected), list(pixels), pictures]
    if channels == 1:
        arrays += [pixels[..., None], torch.from_numpy(pixels)]
    for array in [*arrays, loaded]:
        loaded = load_images(array)
        assert loaded.sha256 == digest
        assert not loaded.pixels.flags.writeable
    copied = load_images(pixels)
    pixels[:] = 0
    assert copied.sha256 == digest


@pytest.mark.parametrize("form", [*FORMS, "array"])
@pytest.mark.parametrize("shape", [(12, 6, 7), (12, 6, 7, 3)])
def test_the_first_images_are_the_start_of_all(tmp_path, form, shape):
    pixels = random_images(*shape)
    source = pixels if form == "array" else save_as(tmp_path, form, pixels)
    everything, part = load_images(source), load_images(source, num_images=11)
    assert len(part) == 11
    np.testing.assert_array_equal(part.pixels, everything.pixels[:11])
    assert list(part.ids) == list(everything.ids[:11])
    assert part.sha256 == everything.subset(11).sha256 != everything.sha256
    assert load_images(source, num_images=12).sha256 == everything.sha256
    for number in (0, -1, 13):
        message = refused(source, num_images=number)
        assert message.startswith(f"`num_images={number}`: ")
    assert "holds 12 images" in message


def test_a_set_of_any_layout_and_chunk_has_one_hash(monkeypatch):
    pixels = random_images(5, 4, 3, 2)
    whole = ImageSet(pixels, "abcde", "x").sha256
    monkeypatch.setattr(images, "_HASH_CHUNK", 50)
    strided = np.repeat(pixels, 2, axis=0)[::2]
    assert ImageSet(strided, "abcde", "x").sha256 == whole
    assert ImageSet(pixels.reshape(5, 4, 2, 3), "abcde", "x").sha256 != whole


def test_a_set_refuses_what_does_not_match():
    pixels = random_images(2, 1, 3, 3)
    good = ImageSet(pixels, ["a", "b"], "x", np.array([3, 4]))
    assert good.subset(1).labels.tolist() == [3]
    with pytest.raises(InputError, match="`num_images=3`"):
        good.subset(3)
    with pytest.raises(InputError, match="uint8"):
        ImageSet(pixels.astype(np.float32), ["a", "b"], "x")
    with pytest.raises(InputError, match="N, C, H, W"):
        ImageSet(pixels[0], ["a"], "x")
    with pytest.raises(InputError, match="one id"):
        ImageSet(pixels, ["a"], "x")
    with pytest.raises(InputError, match="one label"):
        ImageSet(pixels, ["a", "b"], "x", np.array([3]))


CHOSEN = {
    "all": (slice(None), [0, 1, 2, 3, 4, 5, 6]),
    "the first": (slice(3), [0, 1, 2]),
    "a slice": (slice(2, 5), [2, 3, 4]),
    "backwards": (slice(None, None, -2), [6, 4, 2, 0]),
    "a list": ([3, 5], [3, 5]),
    "from the end": (np.array([-1, 1]), [6, 1]),
    "booleans": (np.arange(7) % 3 == 1, [1, 4]),
}


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("name", CHOSEN)
def test_some_images_are_a_set_of_them_alone(name, is_mixed):
    index, places = CHOSEN[name]
    parts = [random_images(3, 4, 5 + i * is_mixed, seed=i) for i in range(7)]
    pixels, shapes = packed(parts)
    about = {"classes": ("a", "b"), "passed_over": {".csv": 1}}
    ids, labels = [f"image {i}" for i in range(7)], np.arange(7) % 2
    some = ImageSet(pixels, ids, "x", labels, shapes=shapes, **about)[index]
    alone, alone_shapes = packed(parts[i] for i in places)
    assert list(some.ids) == [ids[i] for i in places]
    assert some.labels.tolist() == [i % 2 for i in places]
    assert {field: getattr(some, field) for field in about} == about
    assert some.sha256 == ImageSet(alone, some.ids, "x", shapes=alone_shapes).sha256
    total = None if places == list(range(len(places))) else 7
    assert some.record.get("chosen_from") == some.chosen_from == total
    assert any("of 7 images, chosen by index" in line for line in some.notes) == bool(total)
    assert some[:1].chosen_from == total


@pytest.mark.parametrize(
    "index", [3, np.int64(3), 1.0, "0", None, (1, 2), [], slice(5, 2), [7], [1, -6], [True] * 6]
)
def test_what_chooses_no_images_is_refused(index):
    images = load_images(random_images(7, 4, 5))
    with pytest.raises(
        InputError, match=r"images\[\.\.\.\]: .*; give a slice or positions from 0 to 6"
    ):
        images[index]


def test_a_set_is_not_iterated():
    with pytest.raises(InputError, match="give a slice"):
        list(load_images(random_images(7, 4, 5)))


@pytest.mark.parametrize("shape", [(12, 4, 5), (3, 4, 5, 3), (2, 200, 100)])
def test_a_notebook_shows_the_first_images(shape):
    pixels, source = random_images(*shape), "<script>"
    images = dataclasses.replace(load_images(pixels), source=source)
    table = ElementTree.fromstring(images[1:]._repr_html_())
    text = " ".join(table.itertext())
    assert f"{len(pixels) - 1} of {len(pixels)}, {images.shape_words}" in text
    assert source in text
    pictures = list(table.iter("img"))
    assert [p.get("title") for p in pictures] == list(images.ids[1:9])
    code = base64.b64decode(pictures[0].get("src").partition(",")[2])
    first = np.asarray(Image.open(io.BytesIO(code)))
    if max(shape[1:3]) <= 64:
        np.testing.assert_array_equal(first, pixels[1])
    assert max(first.shape) <= 64


REFUSED = {
    "0..1": (np.random.default_rng(0).random((2, 5, 6, 3)), "(255 * x).round().astype('uint8')"),
    "-1..1": (np.linspace(-1, 1, 60).reshape(2, 5, 6), "(127.5 * x + 127.5).round()"),
    "tensor": (torch.rand(2, 3, 5, 6), "(255 * x).round()"),
    "bfloat16": (torch.rand(2, 3, 5, 6).bfloat16(), "(255 * x).round()"),
    "meta": (torch.zeros(2, 3, 5, 6, dtype=torch.uint8, device="meta"), "meta device"),
    "sparse": (torch.ones(2, 5, 6, dtype=torch.uint8).to_sparse(), "x.to_dense()"),
    "8-bit floats": (torch.rand(2, 5, 6).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "conjugate": (torch.ones(2, 5, 6, dtype=torch.cfloat).conj(), "complex64"),
    "masked": (np.ma.array(np.ones((2, 5, 6), np.uint8), mask=True), "x.filled(0)"),
    "masked images": ([np.ma.array(np.ones((5, 6), np.uint8), mask=True)], "x.filled(0)"),
    "int64": (np.zeros((2, 5, 6), np.int64), "x.astype('uint8')"),
    "bool": (np.zeros((2, 5, 6), bool), "255 * x"),
    "channels first": (random_images(2, 3, 5, 6), "x.transpose(0, 2, 3, 1)"),
    "channels last": (torch.zeros(2, 5, 6, 3, dtype=torch.uint8), "give a tensor as (N, C, H, W)"),
    "none": (random_images(0, 5, 6), "is empty"),
    "sizes": ([random_images(5, 6), random_images(6, 5)], "image 1: has shape (6, 5)"),
    "a list of other things": ([1, 2], "image 0: is int"),
    "nothing": ([], "is neither"),
    "transparent": ([Image.new("RGBA", (5, 6))], "image 0: has transparency"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_array_is_refused_with_how_to_convert_it(name):
    array, reason = REFUSED[name]
    assert reason in refused(array)


def test_the_conversion_that_is_named_works():
    for name in ("0..1", "-1..1", "int64", "bool", "channels first"):
        x = REFUSED[name][0]
        line = REFUSED[name][1]
        message = refused(x)
        line = message.split("(N, H, W, 3): " if name == "channels first" else "0..255: ")[1]
        assert load_images(eval(line.split(" where ")[0], {"x": x})).pixels.shape[0] == 2


def test_a_bound_takes_an_array_a_path_or_a_set(small_model, tmp_path):
    pixels = random_images(2, 8, 8)
    np.save(tmp_path / "a.npy", pixels)
    options = {"estimator": "every-pair", "draws": 1, "check": False, "device": "cpu"}
    model = small_model.respaced(3)
    result = {
        evaluate_nll(model, images, **options).summary["bits_per_dim"]
        for images in (pixels, tmp_path / "a.npy", str(tmp_path / "a.npy"), load_images(pixels))
    }
    assert len(result) == 1


def test_an_array_with_changes_that_its_file_lacks_keeps_them(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8), np.uint8))
    array = np.load(tmp_path / "images.npy", mmap_mode="c")
    array[:] = 7
    assert (load_images(array).pixels == 7).all()
    assert (array == 7).all()


def test_an_image_set_is_what_it_was():
    images = load_images(random_images(2, 5, 6))
    assert isinstance(images, ImageSet)
    assert load_images(images) is images


def test_a_single_image_is_not_a_set(tmp_path):
    rgb().save(tmp_path / "a.png")
    assert "give the folder that holds it" in refused(tmp_path / "a.png")
