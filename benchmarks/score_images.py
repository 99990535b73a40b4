"""Images of `results/score`: drawn digits, and the first training images of Fashion-MNIST.

The digits resemble MNIST but are drawn: white on black in a font of matplotlib, with a random size,
rotation and shift.
"""

from pathlib import Path

import click
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import ddpmbench as db

SIDE = 28


def digits(count: int, seed: int) -> NDArray[np.uint8]:
    """(N, H, W) the digits 0 to 9 in turn."""
    generator = np.random.default_rng(seed)
    fonts = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVuS*.ttf"))
    fonts = [path for path in fonts if "Display" not in path.name]
    images = []
    for k in range(count):
        image = Image.new("L", (SIDE, SIDE))
        font = ImageFont.truetype(fonts[generator.integers(len(fonts))], generator.integers(18, 25))
        middle = tuple(SIDE / 2 + generator.uniform(-2, 2, 2))
        ImageDraw.Draw(image).text(middle, str(k % 10), fill=255, font=font, anchor="mm")
        angle = generator.uniform(-15, 15)
        images.append(np.asarray(image.rotate(angle, Image.Resampling.BILINEAR)))
    return np.stack(images)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
@click.option("--count", default=500, show_default=True, help="Digits.")
@click.option("--few", default=200, show_default=True, help="Training images; 0 for none.")
@click.option("--seed", default=0, show_default=True, help="Of the digits.")
def main(out: Path, count: int, few: int, seed: int) -> None:
    """Write digits.npz and few.npz."""
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "digits.npz", arr_0=digits(count, seed)[..., None])
    if few:
        images = db.load_images("fashion-mnist:train", num_images=few)
        np.savez_compressed(out / "few.npz", arr_0=images.pixels.transpose(0, 2, 3, 1))


if __name__ == "__main__":
    main()
