"""One network trained as VP and as VE on the same images: the figure of `results/processes`.

    python benchmarks/process_study.py split --out .
    python benchmarks/process_study.py draw --runs . --out results/processes

`split` writes train.npz, the first 9,000 test images of Fashion-MNIST, and test.npz, the other
1,000. For the runs in between see `results/processes/README.md`.
"""

import json
from pathlib import Path

import click
import matplotlib
import numpy as np
import pandas as pd

import ddpmbench as db

NUM_TRAINING = 9000
MODELS = {"vp": "VP", "ve": "VE", "ve-sliced": "VE, sliced score matching"}
"""Models by the names of their folders."""
BIN = 0.5
"""Width of a bin of log SNR in which the integrand is averaged."""
COLORS = dict(zip(MODELS, ("#1f77b4", "#d62728", "#9467bd"), strict=True))


@click.group()
def main() -> None:
    """Images before, and the figure after."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def split(out: Path) -> None:
    """Write train.npz and test.npz."""
    pixels = db.load_images("fashion-mnist:test").pixels.transpose(0, 2, 3, 1)
    np.savez_compressed(out / "train.npz", arr_0=pixels[:NUM_TRAINING])
    np.savez_compressed(out / "test.npz", arr_0=pixels[NUM_TRAINING:])


@main.command()
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def draw(runs: Path, out: Path) -> None:
    """Write processes.csv, integrand.csv and processes.png from the runs of each model."""
    models = [name for name in MODELS if (runs / f"{name}-likelihoods").is_dir()]
    table = pd.concat([_numbers(runs, name) for name in models], ignore_index=True)
    integrand = pd.concat([_integrand(runs, name) for name in models], ignore_index=True)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "processes.csv", index=False)
    integrand.to_csv(out / "integrand.csv", index=False)
    _draw(table, integrand, out / "processes.png")
    click.echo(table.to_string(index=False))


def _numbers(runs: Path, name: str) -> pd.DataFrame:
    """Every likelihood and Frechet distance of a model, with its 95 % half width."""
    likelihoods = pd.read_csv(runs / f"{name}-likelihoods" / "likelihoods.csv")
    rows = likelihoods.rename(columns={"likelihood": "quantity", "bits_per_dim": "value"})
    rows["unit"] = "bits/dim"
    fidelity = json.loads((runs / f"{name}-fid" / "summary.json").read_text())
    for reference in fidelity["references"]:
        rows.loc[len(rows)] = {
            "quantity": f"to {Path(reference['source']).stem} images",
            "value": reference["fid"],
            "half_width": reference["fid_half_width"],
            "unit": "features",
        }
    rows.insert(0, "model", name)
    return rows[["model", "quantity", "value", "half_width", "unit"]]


def _integrand(runs: Path, name: str) -> pd.DataFrame:
    """The continuous bound's integrand over the log SNR, bits per dimension, in bins."""
    parts = pd.read_csv(runs / f"{name}-continuous" / "per_timestep.csv")
    edges, kl = parts.log_snr.to_numpy(), parts[1:].reset_index(drop=True)
    kl["log_snr"] = (edges[1:] + edges[:-1]) / 2
    kl["width"] = edges[:-1] - edges[1:]
    kl["variance"] = kl.standard_error**2
    bins = kl.groupby((kl.log_snr // BIN).astype(int))
    width = bins.width.sum()
    return pd.DataFrame(
        {
            "model": name,
            "log_snr": bins.log_snr.mean(),
            "bits_per_dim": bins.bits_per_dim.sum() / width,
            "standard_error": bins.variance.sum() ** 0.5 / width,
        }
    )


def _draw(table: pd.DataFrame, integrand: pd.DataFrame, path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 3.8), width_ratios=(5, 4, 1.6), layout="constrained"
    )
    models = list(dict.fromkeys(table.model))
    for name in models:
        rows = integrand[integrand.model == name]
        left.plot(rows.log_snr, rows.bits_per_dim, color=COLORS[name], label=MODELS[name], lw=1)
        left.fill_between(
            rows.log_snr,
            rows.bits_per_dim - 1.96 * rows.standard_error,
            rows.bits_per_dim + 1.96 * rows.standard_error,
            color=COLORS[name],
            alpha=0.2,
            lw=0,
        )
    left.invert_xaxis()
    left.set(
        xlabel="log signal-to-noise ratio  (data to noise)",
        ylabel="bits/dim per unit of log SNR",
        title="Where the continuous bound comes from",
    )
    left.legend(frameon=False)
    for axes, unit, title in (
        (middle, "bits/dim", "Likelihoods"),
        (right, "features", "Samples"),
    ):
        rows = table[table.unit == unit]
        names = list(dict.fromkeys(rows.quantity))
        for k, name in enumerate(models):
            own = rows[rows.model == name].set_index("quantity").reindex(names)
            place = np.arange(len(names)) + 0.16 * (k - (len(models) - 1) / 2)
            axes.errorbar(
                place, own.value, own.half_width, fmt="o", ms=4, color=COLORS[name], capsize=3
            )
        labels = [name.replace(" ", "\n") for name in names]
        axes.set_xticks(range(len(names)), labels, fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set(
            title=title,
            ylabel="bits/dim" if unit == "bits/dim" else "Frechet distance, 1,000 samples",
        )
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
