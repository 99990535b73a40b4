"""Folders as a run of `fid` leaves them, of seeded numbers and the shipped images."""

import copy

import numpy as np
import pandas as pd

from ddpmbench.checksums import checksum, write_json, write_npz
from ddpmbench.data.load import load_images
from ddpmbench.execution.samples import write_samples
from ddpmbench.execution.stored_images import NearestImages
from ddpmbench.report.fid import FidReport
from ddpmbench.version import __version__

HASH = "9f6c1d2e3a4b" * 5 + "0f1e"
NUM_GENERATED = 120
SIZES = (30, 40, 60, 80, 100, 120)
VALUES = {
    **{"fid": 12.34, "fid_half_width": 0.21},
    **{"fid_infinity": 11.9, "fid_infinity_half_width": 0.25},
    **{"kid": 0.00423, "kid_half_width": 0.00031},
    **{"precision": 0.71, "precision_half_width": 0.0812},
    **{"recall": 0.48, "recall_half_width": 0.0301},
}
SCORE = {"inception_score": 9.12, "inception_score_half_width": 0.11}


def reference(source="fashion-mnist:test", **changes):
    split = source.partition(":")[2]
    sha256 = (source.encode().hex() * 8)[:64]
    known = {"source": source, "split": split, "sha256": sha256, "num_reference": 10_000}
    return {**known, **VALUES, **changes}


def summary(references=None, **changes):
    """That of samples of a checkpoint; top-level values are those of the first reference."""
    references = references or [reference()]
    first = {name: references[0][name] for name in VALUES}
    protocol = {
        "id": "clean",
        "resize": "clean",
        "eight_bit": "round",
        "channels": "gray repeated",
        "feature_network": {"name": "inception-2015-12-05", "sha256": HASH, "num_features": 2048},
        "inception_splits": 10,
        "inception_order": "file",
        "kid_subsets": 100,
        "kid_subset_size": 1000,
        "neighbors": 3,
        "num_generated": NUM_GENERATED,
        "dtype": "float32 features, float64 statistics",
    }
    whole = {
        "schema": FidReport.SCHEMA,
        "name": "FID",
        **first,
        **SCORE,
        "num_generated": NUM_GENERATED,
        "num_reference": references[0]["num_reference"],
        "protocol": protocol,
        "references": references,
        "samples": {
            **{"source": "samples.npz", "sha256": "ab" * 32},
            **{"num_images": NUM_GENERATED, "skipped": 0},
        },
        "checkpoint": {"source": "default", "family": "native", "sha256": "f6215dda321f" * 5},
        "sampler": {
            **{"method": "ancestral", "variance": "fixed_large", "clip": True},
            **{"num_timesteps": 100, "num_original_timesteps": 1000, "schedule": "linear"},
            **{"eta": None, "added_noise": "inner", "labels": None},
        },
        "num_evaluations": 12_000,
        "seed": 0,
        "device": "cpu, 2 threads",
        "compute_precision": "fp32",
        "seconds": 412.1,
        "warnings": [],
    }
    return copy.deepcopy(whole) | changes


def of_another_network(whole):
    """The same, with a feature network that is not Inception."""
    protocol = copy.deepcopy(whole["protocol"])
    protocol["feature_network"] |= {"name": "efficientnet-lite0", "num_features": 1280}
    return {**whole, "name": f"FD[{HASH[:12]}]", "protocol": protocol}


def against_n(whole):
    """Points on the lines that end at each reference's `fid_infinity`, and a little off them."""
    noise = np.random.default_rng(1)
    rows = [
        {
            "reference": of["source"],
            "num_generated": n,
            "fid": of["fid_infinity"] + 52 / n + noise.normal(0, 0.01),
            "standard_error": 0.01 + 1 / n,
        }
        for of in whole["references"]
        if of["fid_infinity"] is not None
        for n in SIZES
    ]
    return pd.DataFrame(rows, columns=["reference", "num_generated", "fid", "standard_error"])


def influence(seed=0, *, shared=0.0, num=NUM_GENERATED):
    """Of every image on each measure; a share of it is the same for every seed.

    The half widths of `VALUES` are those of these influences.
    """
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    arrays = {}
    for name in ("fid", "kid", "inception_score"):
        half_width = {**VALUES, **SCORE}[f"{name}_half_width"]
        drawn = np.sqrt(shared) * common.normal(size=num)
        drawn += np.sqrt(1 - shared) * own.normal(size=num)
        drawn -= drawn.mean()
        arrays[name] = drawn / drawn.std(ddof=1) * half_width / 1.96 * np.sqrt(num)
    arrays["precision"] = (
        np.where(common.random(num) < shared, common.random(num), own.random(num))
        < VALUES["precision"]
    ).astype(np.float64)
    return arrays


def fidelity_folder(folder, whole=None, *, influences=None, environment=True):
    """Write all that a run leaves, with `influences` as `influence` makes them."""
    whole = whole or summary()
    num = whole["num_generated"]
    images = load_images("fashion-mnist:test", num_images=num + 40)
    pixels = np.asarray(images.pixels)
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"schema": FidReport.SCHEMA, "ddpmbench": __version__})
    distance = draw.gamma(9.0, 0.4, num)
    pd.DataFrame(
        {
            "image_id": np.arange(num),
            "nearest_reference_id": draw.integers(0, 10_000, num),
            "nearest_reference_distance": distance,
            "class_entropy": draw.gamma(2.0, 0.5, num),
        }
    ).to_csv(folder / "per_image.csv", index=False)
    against_n(whole).to_csv(folder / "fid_against_n.csv", index=False)
    tables = {path.name: checksum(path) for path in folder.glob("*.csv")}
    write_json(folder / "summary.json", whole, tables)
    nearest(pixels, num).write(folder / "nearest.npz")
    write_samples(folder / "samples.npz", pixels[:num], None)
    if influences is not None:
        write_npz(folder / "influence.npz", influences)
    if environment:
        record = {
            "versions": {"ddpmbench": __version__, "torch": "2.9.0"},
            "git_revision": None,
            "platform": "Linux",
            "device": whole["device"],
            "arguments": {
                "given": ["ddpmbench", "fid", "--protocol", "clean"],
                "resolved": {"protocol": "clean", "num_generated": num},
            },
        }
        write_json(folder / "environment.json", record)
    return folder


def nearest(pixels, num, *, samples=8, references=5):
    """The first of `pixels` beside those after `num`, at rising distances."""
    draw = np.random.default_rng(2)
    ids = np.argsort(draw.random((samples, 40)))[:, :references]
    distance = np.sort(draw.gamma(9.0, 0.4, (samples, references)))
    return NearestImages(
        samples=pixels[:samples],
        sample=np.arange(samples),
        references=pixels[num + ids],
        reference_id=(num + ids).astype(str),
        distance=distance,
    )
