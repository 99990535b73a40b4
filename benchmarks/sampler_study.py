"""Sample quality against network evaluations: every sampler, with the model in the package.

    python benchmarks/sampler_study.py --work runs/samplers --out results/samplers

Each sampler makes the same number of samples from the same initial noise, with 10 to 1,000 network
evaluations per sample. The score is the Frechet distance to the shipped images in features of
EfficientNet-lite0, with a jackknife interval. The same command resumes a study.
"""

import dataclasses
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter, ScalarFormatter

import ddpmbench as db
from ddpmbench.data.images import ImageSet
from ddpmbench.evaluate.sample import MadeBy, load_samples
from ddpmbench.execution.progress import tell
from ddpmbench.execution.samples import Generation
from ddpmbench.files import replacing
from ddpmbench.metrics.feature_networks import EFFICIENTNET
from ddpmbench.metrics.frechet import leave_one_out
from ddpmbench.metrics.statistics import Estimate
from ddpmbench.report.figures import COLORS, GRID, drawing

COLUMNS = ("sampler", "settings", "num_timesteps", "num_evaluations", "num_samples")
REAL, REFERENCE = "real images", 5000
STYLES = {
    "ancestral": ("#000000", "s", "-"),
    "ddim": (COLORS[0], "o", "-"),
    "dpm-solver++": (COLORS[1], "v", "-"),
    "dpm-solver++ even": (COLORS[5], "P", ":"),
    "ode heun": (COLORS[2], "^", "-"),
    "predictor-corrector": (COLORS[3], "D", "-"),
    "langevin": (COLORS[4], "X", "-"),
}
"""Color, marker and dashes of each line."""
_CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Cell:
    """One sampler with one number of timesteps.

    Attributes:
        name: the line in the figure.
        choice: the sampler.
        timesteps: of the model; None for all.
    """

    name: str
    choice: db.SamplerChoice
    timesteps: int | None = None

    def checkpoint(self) -> db.Checkpoint:
        """The model."""
        checkpoint = db.load_checkpoint()
        return checkpoint if self.timesteps is None else checkpoint.respaced(self.timesteps)

    @property
    def num_evaluations(self) -> int:
        """Network evaluations per sample."""
        return self.choice.num_evaluations(self.checkpoint().schedule)

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return f"{self.name}-{self.num_evaluations}".replace(" ", "-").replace("+", "p")


def cells() -> list[Cell]:
    """Every sampler at about 10 to 100 evaluations, the cheapest first.

    At 1,000 there are only the ancestral samples of the published run.
    """
    langevin = db.SamplerChoice("langevin", langevin_steps=1, step_size=0.9)
    corrector = db.SamplerChoice("predictor-corrector")
    studied = [Cell("ancestral", db.SamplerChoice(), 1000)]
    for number in (10, 20, 50, 100):
        studied += [
            Cell("ancestral", db.SamplerChoice(), number),
            Cell("ddim", db.SamplerChoice("ddim"), number),
            Cell("dpm-solver++", db.SamplerChoice("dpm-solver++"), number),
            Cell("ode heun", db.SamplerChoice("ode"), number // 2 + 1),
            Cell("predictor-corrector", corrector, number // 2),
            Cell("langevin", langevin, number - 1),
        ]
        if number == 10:
            even = db.SamplerChoice("dpm-solver++", solver_steps=9)
            studied.append(Cell("dpm-solver++ even", even))
    return studied


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="For the samples.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="For the results.")
@click.option("--num-samples", default=200, show_default=True, type=click.IntRange(3, 5000))
@click.option(
    "--samples-of",
    type=click.Path(path_type=Path),
    help="A run folder of samples, of which the first ones are taken where they are of a sampler.",
)
@click.option("--batch-size", default=50, show_default=True, type=click.IntRange(min=1))
def main(
    work: Path,
    out: Path,
    num_samples: int,
    samples_of: Path | None,
    batch_size: int,
) -> None:
    """Frechet distance against network evaluations, for every sampler."""
    pixels = db.load_images("fashion-mnist:test").pixels[: REFERENCE + num_samples]
    network = db.load_feature_network(EFFICIENTNET)
    real = features_of(network, pixels, work / "reference")
    # The images after the reference serve as samples of a perfect model.
    reference = db.feature_statistics(real[:REFERENCE])
    perfect = leave_one_out(real[REFERENCE:], reference).estimate
    rows = [row_of((REAL, "", None, 0, num_samples), perfect)]
    existing = None if samples_of is None else load_samples(samples_of)
    out.mkdir(parents=True, exist_ok=True)
    for cell in cells():
        pixels = samples_of_cell(cell, num_samples, work, existing, batch_size)
        features = features_of(network, pixels, work / f"features-{cell.folder}")
        estimate = leave_one_out(features, reference).estimate
        settings = ", ".join(f"{name}={value}" for name, value in cell.choice.record.items())
        timesteps = cell.checkpoint().schedule.num_timesteps
        key = (cell.name, settings, timesteps, cell.num_evaluations, num_samples)
        rows.append(row_of(key, estimate))
        tell(f"{cell.folder}: {estimate.value:.2f} +- {estimate.half_width:.2f}")
        table = pd.DataFrame(rows).astype({"num_timesteps": "Int64"})
        table.to_csv(out / "distance.csv", index=False)
        draw(table, out)


def row_of(key: tuple[object, ...], estimate: Estimate) -> dict[str, object]:
    """A row of the table."""
    values = {"distance": estimate.value, "half_width": estimate.half_width}
    return {**dict(zip(COLUMNS, key, strict=True)), **values}


def samples_of_cell(
    cell: Cell,
    num_samples: int,
    work: Path,
    existing: tuple[ImageSet, MadeBy | None] | None,
    batch_size: int,
) -> np.ndarray:
    """(N, C, H, W) the first samples of a sampler, from an existing run or generated."""
    settings, checkpoint = db.SampleSettings(sampler=cell.choice), cell.checkpoint()
    if existing is not None and is_same(existing[1], MadeBy.of(Generation(checkpoint, settings))):
        return existing[0].pixels[:num_samples]
    report = db.generate_samples(
        checkpoint,
        num_samples,
        settings=settings,
        batch_size=batch_size,
        out=work / cell.folder,
        progress=False,
    )
    return report.images.pixels


def is_same(origin: MadeBy | None, wanted: MadeBy) -> bool:
    """Whether samples are from a given model and sampler."""
    if origin is None:
        return False
    return (
        origin.checkpoint["sha256"] == wanted.checkpoint["sha256"]
        and all(wanted.sampler[name] == value for name, value in origin.sampler.items())
        and (origin.seed, origin.eight_bit, origin.precision)
        == (wanted.seed, wanted.eight_bit, wanted.precision)
    )


def features_of(network: db.FeatureNetwork, pixels: np.ndarray, folder: Path) -> np.ndarray:
    """(N, D) features, stored in a folder as they are computed."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(pixels), _CHUNK):
        chunk = pixels[start : start + _CHUNK]
        place = folder / f"{start:06d}-{len(chunk)}.npy"
        if not place.exists():
            with replacing(place) as temporary, temporary.open("wb") as file:
                np.save(file, db.image_features(network, chunk).features)
            tell(f"{folder.name}: features of {start + len(chunk):,} images")
        parts.append(np.load(place))
    return np.concatenate(parts)


def draw(table: pd.DataFrame, out: Path) -> None:
    """The distance against network evaluations, both on logarithmic axes."""
    with drawing():
        figure, axes = plt.subplots(figsize=(7.6, 5.2), layout="constrained")
        perfect = table[table["sampler"] == REAL].iloc[0]
        low, high = (perfect["distance"] + sign * perfect["half_width"] for sign in (-1, 1))
        axes.axhspan(low, high, color="#cccccc", label=f"{perfect['num_samples']} {REAL}")
        for name, (color, marker, dash) in STYLES.items():
            rows = table[table["sampler"] == name].sort_values("num_evaluations")
            if len(rows):
                axes.errorbar(
                    rows["num_evaluations"],
                    rows["distance"],
                    rows["half_width"],
                    color=color,
                    marker=marker,
                    linestyle=dash,
                    capsize=2,
                    markersize=5,
                    linewidth=1.2,
                    label=name,
                )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="network evaluations a sample",
            ylabel="Frechet distance, features of EfficientNet-lite0",
        )
        axes.set(xticks=[10, 20, 50, 100, 200, 500, 1000], yticks=[50, 75, 100, 150, 200, 300])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True, which="major", color=GRID)
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
        figure.savefig(out / "distance.svg", metadata={"Date": None})
        figure.savefig(out / "distance.png", dpi=130, facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    main()
