"""`ddpmbench compress` and `decompress`: the lossless code of a model."""

from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.launch import open_checkpoint, open_inputs, resumable, take
from ddpmbench.errors import InputError
from ddpmbench.execution.progress import note


@click.command(short_help="Compress images losslessly to the length of the bound.")
@options.ckpt_option
@options.reading_options
@options.data_options
@options.path_option(
    "File to write. The same command on an unfinished one resumes it.",
    metavar="FILE",
    required=True,
)
@options.count(
    "--timesteps",
    metavar="K",
    text="Visit the best K timesteps, which takes K network evaluations per image.  [default: 50]",
)
@options.choice(
    "--code-variance",
    ["best_constant", "fixed_small", "fixed_large"],
    "Variance of the code's reverse process: the best constant at every timestep, or a fixed one.",
    default="best_constant",
)
@options.path_option(
    "Take the timesteps, the variances and the bound from that run of nll on the same images, "
    "instead of a new short run.",
    "--run",
    "RUN",
)
@options.count(
    "--block-images",
    default=1024,
    text="Images per block. A block can be decompressed alone, but costs a start-up.",
)
@options.count("--batch-size", default=64, text="Largest number of images in a batch.")
@options.choice(
    "--verify",
    ["first", "all", "none"],
    "Blocks to decode right after they are written, and to compare with the images.",
    default="first",
)
@click.option(
    "--compare/--no-compare",
    default=True,
    help="Also compress the images with other lossless codecs.  [default: compare]",
)
@options.path_option("Also write the result as a page.", "--page", "HTML")
@options.device_option
@options.format_option
def compress(
    out: Path,
    page: Path | None,
    output_format: str,
    **given: Any,  # noqa: ANN401
) -> None:
    """Compress images losslessly by bits-back coding, to the length that the bound states.

    Decompression needs the same checkpoint on the same kind of machine.

    \b
    Examples:
        ddpmbench compress --num-images 1000 --out images.ddpmc
        ddpmbench compress --ckpt google/ddpm-cifar10-32 --data cifar10:test --out cifar10.ddpmc
        ddpmbench compress --timesteps 100 --run runs/default --out images.ddpmc
    """
    from ddpmbench.evaluate.compress import compress as compressed
    from ddpmbench.files import named_path, replacing, writing_to
    from ddpmbench.report.codec import codec_page, printed_codec

    if page is not None:
        _check_page(page, named_path(out))
    timesteps, given["timesteps"] = given["timesteps"], None  # the checkpoint keeps its own
    checkpoint, images = open_inputs(given)
    note(*checkpoint.notes)
    with resumable(out):
        report = compressed(checkpoint, images, out, timesteps=timesteps, **given)
    if page is not None:
        with writing_to(page.parent, "--page"), replacing(page) as temporary:
            temporary.write_text(codec_page(report.summary), encoding="utf-8")
    click.echo(printed_codec(report.summary, output_format))


def _check_page(page: Path, out: Path) -> None:
    """Refuse, before any work, a page that cannot be written or would replace another file."""
    from ddpmbench.evaluate.compress import PARTIAL
    from ddpmbench.files import check_writable

    others = (out.resolve(), out.with_name(out.name + PARTIAL).resolve())
    if page.resolve() in others:
        raise InputError(f"--page {page}: is the file of --out; name another file")
    if page.is_dir():
        raise InputError(f"--page {page}: is a folder; name a file")
    if page.exists() and page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--page {page}: is there already, and is no .html; name another file")
    check_writable(page.parent, "--page")


@click.command(short_help="Restore the images of a compressed file.")
@click.argument("file", type=options.path)
@options.ckpt_option
@options.reading_options
@options.path_option(
    "An .npz to write, or a folder for one PNG per image.", metavar="NPZ|DIR", required=True
)
@options.count("--block", limits=(0, None), text="Decompress block N alone, from 0 on.")
@options.device_option
def decompress(file: Path, out: Path, **given: Any) -> None:  # noqa: ANN401
    """Restore the images of FILE, which compress wrote, every pixel as it was.

    \b
    Examples:
        ddpmbench decompress images.ddpmc --out images.npz
        ddpmbench decompress images.ddpmc --out images --block 3
    """
    from ddpmbench.evaluate.decompress import decompress as decompressed
    from ddpmbench.evaluate.decompress import first_image, new_place, write_images

    how = take(given, ("block", "device"))
    new_place(out)  # fail now, not after minutes of decoding
    checkpoint = open_checkpoint(given)
    note(*checkpoint.notes)
    images = decompressed(file, checkpoint, **how)
    write_images(out, images, first=first_image(file, how["block"]))
    click.echo(f"{len(images):,} images: {out}", err=True)
