"""Figures of pictures: the numbers beside them, the words under them, the pixels in them."""

import base64
import dataclasses
import io
import re

import numpy as np
import pandas as pd
import pytest
from fidelity_folders import nearest
from PIL import Image

import ddpmbench as db
from ddpmbench.report.fid_figures import nearest_figure
from ddpmbench.report.figures import MAX_PIXELS
from ddpmbench.report.rate_distortion import (
    decoding_figure,
    generation_figure,
    interpolation_figure,
)
from ddpmbench.report.sample import NUM_SHOWN, samples_figure
from ddpmbench.samples.progressive import Interpolation, ProgressiveDecoding, ProgressiveGeneration

RNG = np.random.default_rng(0)
T = 40
STEPS = np.array([40, 21, 1])


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def records(channels=1, height=6, width=6):
    size = (channels, height, width)
    names = np.array(["a", "b"])
    return {
        "decoding": ProgressiveDecoding(
            T, STEPS, np.arange(2), names, pixels(2, *size), pixels(2, 3, *size),
            pixels(2, 3, *size), RNG.uniform(0, 100, (2, 3)),
        ),
        "generation": ProgressiveGeneration(T, STEPS, pixels(2, 3, *size), pixels(2, *size)),
        "interpolation": Interpolation(
            T, 20, np.array([[0, 1]]), names[None], np.array([0.0, 0.5, 1.0]),
            pixels(1, 2, *size), pixels(1, 3, *size),
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def curve():
    t = np.arange(1, T + 1)
    return pd.DataFrame({"t": t, "rate_bits_per_dim": 2.0 / t})


@pytest.fixture(scope="module")
def images():
    return np.asarray(db.load_images("fashion-mnist:test", num_images=160).pixels)


def drawn(kind, record, curve):
    match kind:
        case "decoding":
            return decoding_figure(record, curve)
        case "generation":
            return generation_figure(record)
    return interpolation_figure(record)


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


# ---- numbers and words


def test_under_a_decoded_picture_is_its_error_and_above_its_step_and_rate(curve):
    record = records()["decoding"]
    figure, numbers = decoding_figure(record, curve)
    assert list(numbers.num_decoded_steps) == [1, 20, 40] * 2
    assert list(numbers.rate_bits_per_dim) == [2 / 40, 2 / 21, 2.0] * 2
    assert list(numbers.image_id) == ["a"] * 3 + ["b"] * 3
    np.testing.assert_array_equal(numbers.rmse.to_numpy().reshape(2, 3), record.rmse)
    (axes,) = figure.axes
    columns = {}
    for text in sorted(axes.texts, key=lambda text: text.get_position()[1]):
        columns.setdefault(text.get_position()[0], []).append(text.get_text())
    shown = [columns[x] for x in sorted(columns)]
    for k, row in numbers.iloc[:3].iterrows():
        assert shown[1 + k] == [
            f"{row.num_decoded_steps} of 40",
            f"{row.rate_bits_per_dim:.5f}",
            f"{record.rmse[0, k]:.1f}",
            f"{record.rmse[1, k]:.1f}",
        ]
    assert shown[4] == ["image"]


def test_the_numbers_of_generation_and_interpolation():
    of = records()
    _, numbers = generation_figure(of["generation"])
    assert list(numbers.columns) == ["sample", "t", "num_decoded_steps", "rmse_to_sample"]
    last = of["generation"].pred_x_start[1, 2].astype(float) - of["generation"].samples[1]
    assert numbers.rmse_to_sample.iloc[-1] == np.sqrt(np.square(last).mean())
    mixed = of["interpolation"]
    same = np.stack([mixed.x_start[:, 0], mixed.decoded[:, 1], mixed.x_start[:, 1]], axis=1)
    figure, numbers = interpolation_figure(dataclasses.replace(mixed, decoded=same))
    assert list(numbers.weight) == [0.0, 0.5, 1.0]
    assert (numbers.rmse_to_first.iloc[0], numbers.rmse_to_second.iloc[2]) == (0, 0)
    assert numbers.rmse_to_first.iloc[2] == numbers.rmse_to_second.iloc[0] > 0
    assert set(numbers.t) == {20}
    assert (numbers.first_image_id.iloc[0], numbers.second_image_id.iloc[0]) == ("a", "b")
    assert "mixed at t = 20 of 40, weight of the second image" in texts(figure)


# ---- what is drawn


def embedded(figure):
    """The pictures in the svg, as arrays."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True)
    found = re.findall(r"data:image/png;base64,([^\"]+)\"", out.getvalue())
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]
    return out.getvalue(), [np.asarray(image.convert("RGB")) for image in images]


@pytest.mark.parametrize("kind", ["decoding", "generation", "interpolation"])
@pytest.mark.parametrize("size", [(1, 6, 6), (3, 5, 8)])
def test_every_picture_is_in_the_svg_pixel_by_pixel(curve, kind, size):
    record = records(*size)[kind]
    _, found = embedded(drawn(kind, record, curve)[0])
    arrays = [getattr(record, f.name) for f in dataclasses.fields(record)]
    pictures = [a.reshape(-1, *size) for a in arrays if getattr(a, "dtype", None) == np.uint8]
    expected = {
        np.broadcast_to(p, (3, *size[1:])).transpose(1, 2, 0).tobytes()
        for p in np.concatenate(pictures)
    }
    assert {p.tobytes() for p in found} == expected
    assert len(found) == len(expected)


def test_pixels_are_squares_and_pictures_do_not_touch(curve):
    (axes,) = decoding_figure(records(1, 6, 9)["decoding"], curve)[0].axes
    boxes = [image.get_extent() for image in axes.images]
    for left, right, bottom, top in boxes:
        assert (right - left) / 9 == (bottom - top) / 6 == round((bottom - top) / 6)
    for k, (left, right, bottom, top) in enumerate(boxes):
        for other_left, other_right, other_bottom, other_top in boxes[:k]:
            assert right < other_left or other_right < left or bottom < other_top or (
                other_bottom < top
            )  # fmt: skip


@pytest.mark.parametrize("kind", ["decoding", "generation", "interpolation"])
def test_text_lies_in_the_figure_and_on_no_picture(curve, kind):
    figure = drawn(kind, records()[kind], curve)[0]
    figure.canvas.draw()
    (axes,) = figure.axes
    pictures = [image.get_window_extent() for image in axes.images]
    whole = figure.bbox
    written = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(written) > 3
    for k, box in enumerate(written):
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
        assert not any(box.overlaps(other) for other in [*pictures, *written[:k]])


@pytest.mark.parametrize("kind", ["decoding", "generation", "interpolation"])
def test_a_page_of_any_color_can_hold_it(curve, kind):
    svg, _ = embedded(drawn(kind, records()[kind], curve)[0])
    colors = set(re.findall(r"(?:fill|stroke): ?(#[0-9a-fA-F]{3,6})", svg))
    assert colors == {"#222222"}


def test_large_pictures_are_drawn_smaller(curve):
    record = records(3, 128, 256)["decoding"]
    _, found = embedded(decoding_figure(record, curve)[0])
    assert {p.shape for p in found} == {(MAX_PIXELS // 2, MAX_PIXELS, 3)}
    means = sorted(p.mean() for p in found)
    arrays = [record.x_start, *record.x_t, *record.pred_x_start]
    assert means == pytest.approx(sorted(p.mean() for a in arrays for p in a), abs=0.3)


# ---- samples


@pytest.mark.parametrize("number", [1, 12, 13, NUM_SHOWN, 120])
def test_the_first_samples_are_shown_in_order(images, number):
    figure, numbers = samples_figure(images[:number])
    shown = min(number, NUM_SHOWN)
    _, found = embedded(figure)
    assert len(found) == len(numbers) == shown
    for picture, sample in zip(found, images[:shown], strict=True):
        np.testing.assert_array_equal(picture[..., 0], sample[0])
    assert list(12 * numbers.row + numbers.column) == list(range(shown))


def test_a_sample_has_its_class_under_it(images):
    labels = np.arange(30) + 100
    figure, numbers = samples_figure(images[:30], labels)
    assert list(numbers.label) == list(labels)
    assert [text for text in texts(figure) if text.isdecimal()] == [str(of) for of in labels]


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_a_sample_stands_beside_its_nearest(images, samples):
    of = nearest(images, 120, samples=samples)
    figure, numbers = nearest_figure(of)
    found = iter(embedded(figure)[1])
    for sample, neighbors in zip(of.samples, of.references, strict=True):
        for expected in (sample, *neighbors[:4]):
            np.testing.assert_array_equal(next(found)[..., 0], expected[0])
    assert next(found, None) is None
    np.testing.assert_array_equal(numbers.distance, of.distance.flatten())
    assert list(numbers["rank"][:6]) == [1, 2, 3, 4, 5, 1][: len(numbers)]
    said = texts(figure)
    for k in range(samples):
        assert f"no. {k}" in said
        assert f"{of.distance[k, 0]:#.4g}" in said
