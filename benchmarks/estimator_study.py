"""Half width of the interval against network evaluations: six designs, many seeds each.

    python benchmarks/estimator_study.py --run RUN --out results/estimator

RUN is a finished folder of `ddpmbench nll --estimator every-pair --draws 2`. It holds every term of
its images, so that estimates only look up terms, and their errors are known.
"""

import dataclasses
import functools
import json
import math
import sys
from pathlib import Path

import click
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from estimator_designs import DESIGNS, Design, Estimate, Population, Setting
from scipy import optimize

import ddpmbench as db
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.errors import InputError
from ddpmbench.execution.progress import progress
from ddpmbench.execution.store import FolderStore
from ddpmbench.execution.terms import checked, read_terms
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.regression import FeatureTable, GaussianFeatures

SIZES = {
    "images": (1, 2, 5, 10, 20, 50, 100, 200),
    "rows": (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000),
    "num_replicates": (2, 4, 8, 16, 32, 64),
}
QUANTILE = 1.96
NUM_IMAGES, HALF_WIDTH = 10_000, 0.005  # the target of the needed evaluations

# Okabe & Ito's colors, which the color-blind tell apart; markers and dashes do without color.
STYLES = {
    "every-pair": {"color": "#000000", "marker": "s", "linestyle": "-"},
    "uniform t": {"color": "#D55E00", "marker": "v", "linestyle": (0, (1, 1.5))},
    "stratified t": {"color": "#E69F00", "marker": "D", "linestyle": (0, (6, 2))},
    "Neyman": {"color": "#009E73", "marker": "^", "linestyle": (0, (6, 1.5, 1, 1.5))},
    "importance HT": {"color": "#56B4E9", "marker": "o", "linestyle": (0, (3, 1.5))},
    "importance GREG": {"color": "#0072B2", "marker": "*", "linestyle": "-"},
}


@click.command()
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="For the results.")
@click.option("--seeds", default=200, show_default=True, type=click.IntRange(min=2))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
def main(run: Path, out: Path, seeds: int, seed: int) -> None:
    """Half width against network evaluations, from a run that holds every term of its images."""
    try:
        population = read_population(run)
    except InputError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    measured, needed = study(population, seeds=seeds, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    measured.to_csv(out / "half_width.csv", index=False)
    needed.to_csv(out / "calls_needed.csv", index=False)
    draw(measured, needed, out)
    click.echo(needed.to_string(index=False))


def read_population(run: Path) -> Population:
    """The terms of a finished run, its images' priors and their features.

    Raises:
        InputError: the folder does not hold a finished run of every pair with two draws that
            matches its summary, or the images or the checkpoint are not available.
    """
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        prior = pd.read_csv(run / "per_image.csv")["prior"].to_numpy() * NATS_PER_BIT
        data, images, steps = summary["data"], summary["num_images"], summary["num_timesteps"]
        estimator, draws = summary["estimator"], summary["sampling"].get("draws", 1)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--run {run}: not a finished run folder with its shards") from error
    if estimator != "every-pair" or draws < 2:
        raise InputError(f"--run {run}: needs --estimator every-pair with --draws 2 or more")
    shape = (images, steps, draws)
    design, store = EveryPairDesign(*shape), FolderStore(run / "shards", "terms")
    if store.missing(len(design)):
        raise InputError(f"--run {run}: its shards do not hold every term of its summary")
    tables = checked(read_terms(store, len(design), ("nats",)), design, where=run)
    computed = np.concatenate([table.values["nats"] for table in tables]).reshape(shape)
    spec = f"{data['source']}:{data['split']}" if data["split"] else data["source"]
    pixels = db.load_images(spec, num_images=images)
    if pixels.sha256 != data["sha256"]:
        raise InputError(f"--run {run}: {spec} holds other images now than when it was run")
    schedule = db.load_checkpoint(summary["checkpoint"]["source"]).schedule
    if schedule.num_timesteps != steps:
        raise InputError(f"--run {run}: needs all T = {schedule.num_timesteps} steps, not {steps}")
    gaussian = GaussianFeatures.fit(pixels.pixels, schedule)
    features = functools.partial(FeatureTable.of, gaussian, pixels.pixels)
    population = Population(computed, prior, features)
    if not math.isclose(population.truth / NATS_PER_BIT, summary["bits_per_dim"], rel_tol=1e-9):
        raise InputError(f"--run {run}: its shards do not give the bound of its summary")
    return population


def study(population: Population, *, seeds: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measured errors of every design, and the evaluations it would need.

    Args:
        population: the images.
        seeds: runs of each design at each size.
        seed: determines the result. Designs of one unit and size share their generators.

    Returns:
        `half_width.csv` and `calls_needed.csv`, see `results/estimator/README.md`.
    """
    setting = in_bits(population.setting)
    jobs = [
        (design, size)
        for design in DESIGNS
        for size in SIZES[design.unit]
        if design.unit != "images" or size <= setting.num_images
    ]
    rows = []
    with progress("estimator study", "estimates") as update:
        for design, size in jobs:
            update(len(rows) * seeds, len(jobs) * seeds, f"{design.name}, {size:,} {design.unit}")
            generators = [np.random.default_rng([seed, size, trial]) for trial in range(seeds)]
            estimates = [design.estimate(population, size, generator) for generator in generators]
            rows.append(measured_row(design, size, estimates, population))
    measured = pd.DataFrame(rows)
    needed = [needed_row(design, measured, setting) for design in DESIGNS]
    return measured, pd.DataFrame(needed)


def in_bits(setting: Setting) -> Setting:
    """The setting with the noise in bits squared."""
    return dataclasses.replace(setting, noise=setting.noise / NATS_PER_BIT**2)


def measured_row(
    design: Design, size: int, estimates: list[Estimate], population: Population
) -> dict:
    """A row of `half_width.csv`: the errors of one design at one size."""
    error = (np.array([estimate.nats for estimate in estimates]) - population.truth) / NATS_PER_BIT
    stated = np.array([estimate.half_width for estimate in estimates]) / NATS_PER_BIT
    sampling = error - np.array([estimate.noise for estimate in estimates]) / NATS_PER_BIT
    share, _ = design.variance(size, population.setting)
    (square, square_error), (per_row, per_row_error), (bias, bias_error) = (
        (values.mean(), values.std(ddof=1) / math.sqrt(len(values)))
        for values in (np.square(error), np.square(sampling) / (share or math.nan), error)
    )
    return {
        "design": design.name,
        "size": size,
        "unit": design.unit,
        "num_images": len(population.prior),
        "num_evaluations": estimates[0].num_evaluations,
        "half_width": QUANTILE * math.sqrt(square),
        "half_width_standard_error": QUANTILE * square_error / (2 * math.sqrt(square)),
        "mean_reported_half_width": stated.mean(),
        "coverage": math.nan if np.isnan(stated).any() else (np.abs(error) <= stated).mean(),
        "mean_error": bias,
        "mean_error_standard_error": bias_error,
        "per_row_variance": per_row,
        "per_row_variance_standard_error": per_row_error,
        "seeds": len(error),
    }


def needed_row(design: Design, measured: pd.DataFrame, setting: Setting) -> dict:
    """A row of `calls_needed.csv`: the measured variance per term, and the numbers that follow."""
    rows = measured[(measured["design"] == design.name) & (measured["size"] >= design.settled)]
    rows = rows[rows["per_row_variance"].notna()]
    per_row = rows["per_row_variance"].mean()
    error = np.linalg.norm(rows["per_row_variance_standard_error"]) / len(rows)
    target = dataclasses.replace(setting, num_images=NUM_IMAGES)
    size = size_needed(design, per_row, target)
    low, high = (size_needed(design, per_row + sign * error, target) for sign in (-1, 1))
    whole = design.whole(size)
    evaluations = functools.partial(design.num_evaluations, setting=target)
    return {
        "design": design.name,
        "num_images": NUM_IMAGES,
        "half_width": HALF_WIDTH,
        "size": size,
        "unit": design.unit,
        "num_evaluations": round(evaluations(size)),
        "num_evaluations_standard_error": round((evaluations(high) - evaluations(low)) / 2),
        "whole_size": whole,
        "whole_num_evaluations": evaluations(whole),
        "whole_half_width": scaled_half_width(design, whole, per_row, target),
        "per_row_variance": per_row,
        "per_row_variance_standard_error": error,
    }


def scaled_half_width(design: Design, size: float, per_row: float, setting: Setting) -> float:
    """The half width at a size and a number of images, from the variance per term."""
    share, noise = design.variance(size, setting)
    return QUANTILE * math.sqrt(max(0.0, per_row * share + noise))


def size_needed(design: Design, per_row: float, setting: Setting) -> float:
    """The real-valued size at which the half width is `HALF_WIDTH`."""

    def excess(log_size: float) -> float:
        return scaled_half_width(design, math.exp(log_size), per_row, setting) - HALF_WIDTH

    return math.exp(optimize.brentq(excess, math.log(1e-3), math.log(1e12)))


def setting_of(needed: pd.DataFrame) -> Setting:
    """The setting at `NUM_IMAGES` images, from `calls_needed.csv`.

    The noise is the part of a half width beyond the variance per term: of all timesteps for
    every-pair, of the decoder for Neyman. No design depends on its division among the others.
    """
    rows = needed.set_index("design")
    pairs, neyman = rows.loc["every-pair"], rows.loc["Neyman"]
    num_timesteps = round(pairs["whole_num_evaluations"] / pairs["whole_size"])
    whole, decoder = (
        row["whole_half_width"] ** 2 / QUANTILE**2 - row["per_row_variance"] * share
        for row, share in (
            (pairs, 1 / pairs["whole_size"] - 1 / NUM_IMAGES),
            (neyman, 1 / neyman["whole_size"]),
        )
    )
    whole, decoder = whole * pairs["whole_size"], decoder * NUM_IMAGES
    others = (whole - decoder) / (num_timesteps - 1)
    return Setting(NUM_IMAGES, np.array([decoder] + [others] * (num_timesteps - 1)))


def draw(measured: pd.DataFrame, needed: pd.DataFrame, out: Path) -> None:
    """The figure of both tables, as svg and png: measured, and scaled to more images."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 10, "svg.hashsalt": "ddpmbench"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.2), sharey=True, layout="constrained")
    target, designs = setting_of(needed), {design.name: design for design in DESIGNS}
    for name, row in needed.set_index("design").iterrows():
        design, style = designs[name], {**STYLES[name], "linewidth": 1.6, "markersize": 6}
        rows = measured[measured["design"] == name]
        error = QUANTILE * rows["half_width_standard_error"]
        x, y = rows["num_evaluations"], rows["half_width"]
        left.errorbar(x, y, error, **style, label=name, elinewidth=1)
        sizes = curve_sizes(design)
        x = np.array([design.num_evaluations(size, target) for size in sizes])
        widths = [scaled_half_width(design, n, row["per_row_variance"], target) for n in sizes]
        shown = np.array(widths) >= HALF_WIDTH / 3
        right.plot(x[shown], np.array(widths)[shown], **{**style, "marker": None})
        right.plot(row["whole_num_evaluations"], row["whole_half_width"], **style)
    left.set_ylabel("half width of the 95 % interval (bits/dim)")
    left.set_title(f"measured: {measured['num_images'].max():,} images")
    right.set_title(f"scaled from it: {NUM_IMAGES:,} images")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="network evaluations")
        axes.axhline(HALF_WIDTH, color="0.4", linewidth=1, zorder=0)
        axes.grid(visible=True, which="major", color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    right.annotate(
        f" {HALF_WIDTH:g}", (1, HALF_WIDTH), xycoords=("axes fraction", "data"), va="center"
    )
    figure.legend(loc="outside lower center", ncols=len(DESIGNS), frameon=False)
    figure.savefig(out / "half_width.svg", metadata={"Date": None})
    figure.savefig(out / "half_width.png", dpi=150)
    plt.close(figure)


def curve_sizes(design: Design) -> np.ndarray:
    """The sizes on the curve of a design at `NUM_IMAGES` images."""
    if design.unit == "num_replicates":
        return np.arange(2, 65)
    if design.unit == "images":
        return np.geomspace(10, NUM_IMAGES, 100)
    return np.geomspace(1e3, 1e9, 200) if design.name != "uniform t" else np.geomspace(1e4, 4e9)


if __name__ == "__main__":
    main()
