"""Files that hold no image like the others: named, and passed over where that is asked for."""

import numpy as np
import pytest
from PIL import Image

from ddpmbench.data.images import load_images
from ddpmbench.errors import InputError

SIZE = 6


def picture(index, mode="RGB", size=SIZE):
    rng = np.random.default_rng(index)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).convert(mode)


def good_folder(folder, count=10):
    folder.mkdir()
    for index in range(count):
        picture(index).save(folder / f"{index}.png")
    return folder


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def sixteen_bits(path):
    Image.fromarray(np.full((SIZE, SIZE), 40_000, np.uint16)).save(path)


def animated(path):
    picture(1).save(path, save_all=True, append_images=[picture(2)])


BAD = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("not an image"),
    "cut-early.png": lambda path: (picture(3).save(path), cut(path, 0.2)),
    "cut-late.png": lambda path: (picture(3).save(path), cut(path, 0.7)),
    "flipped.png": lambda path: (picture(3).save(path), flipped(path)),
    "zeros.png": lambda path: path.write_bytes(bytes(200)),
    "gray.png": lambda path: picture(4, "L").save(path),
    "alpha.png": lambda path: picture(5, "RGBA").save(path),
    "gray-alpha.png": lambda path: picture(5, "LA").save(path),
    "palette.png": lambda path: picture(6, "P").save(path),
    "one-bit.png": lambda path: picture(7, "1").save(path),
    "sixteen.png": sixteen_bits,
    "float.tiff": lambda path: picture(8, "F").save(path),
    "integers.tiff": lambda path: picture(8, "I").save(path),
    "large.png": lambda path: picture(9, size=SIZE + 1).save(path),
    "small.png": lambda path: picture(9, size=1).save(path),
    "frames.gif": animated,
    "frames.png": animated,
    "cmyk.jpg": lambda path: picture(10, "CMYK").save(path),
    "renamed.webp": lambda path: path.write_bytes(b"GIF89a"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_or_passed_over(tmp_path, name):
    folder = good_folder(tmp_path / "images", 3)
    whole = load_images(folder)
    BAD[name](folder / name)
    with pytest.raises(InputError) as refusal:
        load_images(folder)
    # A first image is what the others are held against; then it is they that differ.
    assert name in str(refusal.value)
    assert str(refusal.value).count("\n") == 0
    left = load_images(folder, on_bad="skip")
    assert left.sha256 == whole.sha256
    assert list(left.ids) == list(whole.ids)
    assert len(left.skipped) == 1
    assert name in left.skipped[0]


def test_all_of_them_at_once(tmp_path):
    folder = good_folder(tmp_path / "images")
    whole = load_images(folder)
    for name, make in BAD.items():
        make(folder / name)
    left = load_images(folder, on_bad="skip")
    assert left.sha256 == whole.sha256
    assert len(left.skipped) == len(BAD) == 20
    for name in BAD:
        assert sum(f"/{name}:" in line for line in left.skipped) == 1
    assert load_images(folder, num_images=4, on_bad="skip").sha256 == whole.subset(4).sha256
    with pytest.raises(InputError, match=r"`num_images=11`: .* holds 10 images"):
        load_images(folder, num_images=11, on_bad="skip")


def test_nothing_good_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="holds no image that can be read"):
        load_images(tmp_path, on_bad="skip")


def test_there_is_no_other_way(tmp_path):
    with pytest.raises(InputError, match="`on_bad=ignore`: choose fail or skip"):
        load_images(tmp_path, on_bad="ignore")
