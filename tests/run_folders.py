"""Small real runs of every kind, their numbers, and tables as runs write them."""

import dataclasses
import shutil
from numbers import Number
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from feature_networks import write_network

import ddpmbench as db
from ddpmbench.execution.stored_images import Extremes

HOSTILE = "<script>alert('&')</script>" + "x" * 300
KINDS = (
    *("every-pair", "importance", "ode", "likelihoods", "score", "fid", "sample", "speed"),
    *("compare", "compare-fid"),
)
"""Of reports that are loaded from a folder."""
TIMES = {"seconds", "images_per_second"}


class Runs:
    """`runs[kind]` is a report whose folder is made when it is first asked for, and read only.

    A test that takes the network away asks for it before.
    Names are ones that no page may take for markup. Besides `KINDS` there are "one-draw",
    "corrected", in low precision and with all that a run can have, and "other" and "other-fid", of
    another checkpoint, with which the comparisons are.
    """

    def __init__(self, model, images, root: Path):
        training = {str(k): list(range(50)) for k in range(50)}
        notes = tuple(f"note {k}: {HOSTILE}" for k in range(20))
        self.model = dataclasses.replace(model, source=HOSTILE, training=training, notes=notes)
        self.images = dataclasses.replace(images, source=HOSTILE)
        self.root = root
        self.network = db.load_feature_network(
            write_network(root / "stand-in.pt", num_features=6, num_classes=9),
            resize="clean",
            device=torch.device("cpu"),
        )
        self._reports, self._files = {}, {}

    def __getitem__(self, kind: str):
        if kind not in self._reports:
            out = self.root / kind
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DDPMBENCH_CACHE", str(self.root / "cache"))
                patch.setattr("ddpmbench.execution.timing.LEAST_SECONDS", 0.0)
                self._reports[kind] = self.make(kind, out)
            self._files[kind] = contents(out)
            _allow(out, writing=False)
        return self._reports[kind]

    def make(self, kind: str, out: Path):
        """Make a folder of this kind, or go on with it."""
        model, images = self.model, self.images
        pairs = {"estimator": "every-pair", "draws": 2, "out": out}
        ode = {"num_ode_images": 3, "solver_steps": 2, "half_width": 9.0, "out": out}
        fid = db.FidSettings(self.network, db.PROTOCOLS["clean"], 12)
        match kind:
            case "every-pair":
                return db.evaluate_nll(model, images, **pairs)
            case "other":
                return db.evaluate_nll(_another(model), images, **pairs)
            case "one-draw":
                return db.evaluate_nll(model, images, **{**pairs, "draws": 1})
            case "importance":
                return db.evaluate_nll(model, images, half_width=9.0, out=out)
            case "corrected":
                more = {"precision": "bf16", "check": True, "continuous": True}
                report = db.evaluate_nll(model, images, half_width=9.0, **more, out=out)
                db.progressive_pictures(model, images, report)
                return report
            case "ode":
                return db.evaluate_ode(model, images, **ode)
            case "likelihoods":
                return db.evaluate_likelihoods(model, images, **ode)
            case "score":
                return db.score_images(model, images, images.subset(3), out=out)
            case "fid" | "other-fid":
                return db.evaluate_fid(
                    model if kind == "fid" else _another(model), images, fid, out=out
                )
            case "sample":
                return db.generate_samples(model, 5, out=out)
            case "speed":
                quick = db.SpeedSettings(num_images=100)
                return db.measure_speed(model, settings=quick, batch_size=1, out=out)
            case "compare":
                return db.compare([self["every-pair"].folder, self["other"].folder], out=out)
            case "compare-fid":
                return db.compare([self["fid"].folder, self["other-fid"].folder], out=out)
        raise KeyError(kind)

    def copied(self, kind: str, folder: Path) -> Path:
        """A copy that a test may change."""
        copy = shutil.copytree(self[kind].folder, folder / kind)
        _allow(copy, writing=True)
        return copy

    def close(self) -> None:
        """Let the folders be removed; fail if one is not as it was made: root writes anywhere."""
        changed = [kind for kind, of in self._files.items() if contents(self.root / kind) != of]
        for kind in self._files:
            _allow(self.root / kind, writing=True)
        assert not changed, "a test has changed what others read"


def _another(model):
    return dataclasses.replace(model, sha256="1" * 64)


def _allow(folder, *, writing):
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o500 if path.is_dir() else 0o400) | (0o200 if writing else 0))


def contents(folder):
    """The bytes of every file by its path below the folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def numbers(report):
    """Everything of a report that is a number and no time, by name; None is NaN."""
    result = {}

    def take(name, value):
        if isinstance(value, dict):
            for key in value.keys() - TIMES:
                take(f"{name}.{key}", value[key])
        elif isinstance(value, list | tuple):
            for k, of in enumerate(value):
                take(f"{name}[{k}]", of)
        elif isinstance(value, pd.DataFrame):
            result[f"{name}.rows"] = np.array(len(value))
            for column in value.select_dtypes("number"):
                result[f"{name}.{column}"] = value[column].to_numpy(float, na_value=np.nan)
        elif isinstance(value, db.ImageSet):
            result[f"{name}.pixels"] = np.asarray(value.pixels).astype(float)
        elif value is None or isinstance(value, Number):
            result[name] = np.array(np.nan if value is None else value, float)

    for name, value in vars(report).items():
        if name != "folder":
            take(name, value)
    return result


def assert_same_numbers(report, other, tolerance=1e-6):
    """Fail where a number of two reports differs; rounding differs between batches."""
    one, two = numbers(report), numbers(other)
    assert one.keys() == two.keys()
    for name, values in one.items():
        # Of 255 levels, in decibels, and of models of few steps, which take many bits.
        wide = any(word in name for word in ("distortion", "psnr", "sub_schedules"))
        scale = 255 if wide else 1
        np.testing.assert_allclose(values, two[name], rtol=0, atol=scale * tolerance, err_msg=name)


def per_image(num_images):
    """Decoders that rise from image to image; the rest is not known."""
    return pd.DataFrame(
        {
            "image_id": np.arange(num_images).astype(str),
            "prior": 1e-5,
            "kl": np.nan,
            "decoder": 1.0 + np.arange(num_images) / num_images,
            "bits_per_dim": np.nan,
        }
    )


def extremes(pixels, k=4):
    """The first and the last images."""
    best, worst = np.arange(min(k, len(pixels))), np.arange(len(pixels))[::-1][:k]
    return Extremes(best, np.asarray(pixels[best]), worst, np.asarray(pixels[worst]))


def conventions(summary):
    """The run's own, another one, and two of fewer steps."""
    bits = summary["bits_per_dim"]
    rows = []
    for convention, steps, spacing, difference, used_by in (
        ("this run", summary["num_timesteps"], "all", 0.0, ""),
        ("tanh decoder & no clip", summary["num_timesteps"], "all", -0.0123, "a paper, 2021"),
        ("half the steps", summary["num_timesteps"] // 2, "evenly spaced", 0.25, ""),
        ("the best half", summary["num_timesteps"] // 2, "best", 0.0625, ""),
    ):
        rows.append(
            {
                "convention": convention,
                "variance": "fixed_large",
                "clip": True,
                "decoder": "exact",
                "decoder_variance": "posterior",
                "num_timesteps": steps,
                "spacing": spacing,
                "rate_bits_per_dim": summary["kl"],
                "decoder_bits_per_dim": summary["decoder"],
                "bits_per_dim": bits + difference,
                "half_width": np.nan if spacing == "best" else summary["half_width"],
                "difference": difference,
                "difference_half_width": 0.0007 if difference < 0 else np.nan,
                "used_by": used_by,
            }
        )
    return pd.DataFrame(rows)


def sub_schedules(summary):
    """Two variances, each evenly spaced and best."""
    rows = []
    for k, variance in enumerate(("fixed_large", "fixed_small")):
        for spacing, cost in (("evenly spaced", 4.0), ("best", 1.0)):
            for steps in (2, 5, 10, summary["num_timesteps"]):
                rows.append(
                    {
                        "variance": variance,
                        "spacing": spacing,
                        "num_timesteps": steps,
                        "bits_per_dim": summary["bits_per_dim"] + k + cost / steps,
                        "half_width": np.nan if spacing == "best" else 0.01,
                        "steps": " ".join(map(str, range(1, steps + 1))),
                    }
                )
    return pd.DataFrame(rows)


def smooth_run(num_timesteps, num_images=3):
    """Tables by step of no run: `per_timestep` and `rate_distortion`, every term 1 / t^2."""
    t = np.arange(1, num_timesteps + 1)
    term = 1.0 / t**2
    rate = 1e-4 + np.append(np.cumsum(term[::-1])[::-1][1:], 0.0)
    per_timestep = pd.DataFrame(
        {
            "t": t,
            "part": ["decoder"] + ["kl"] * (num_timesteps - 1),
            "bits_per_dim": term,
            "standard_error": 0.01 * term,
            "x_start_mse": 0.01 * t,
            "eps_mse": 1.0 / t,
            "num_evaluations": num_images,
        }
    )
    curve = pd.DataFrame(
        {
            "t": t,
            "num_decoded_steps": num_timesteps + 1 - t,
            "rate_bits_per_dim": rate,
            "rate_standard_error": 0.01 * rate,
            "distortion_rmse": np.sqrt(t),
            "distortion_standard_error": 0.01 * np.sqrt(t),
            "distortion_rmse_of_mean_mse": 1.1 * np.sqrt(t),
            "psnr": 20 * np.log10(255 / 1.1 / np.sqrt(t)),
        }
    )
    return per_timestep, curve
