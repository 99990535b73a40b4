"""Small real runs, and tables as runs write them."""

import numpy as np
import pandas as pd

from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.execution.stored_images import Extremes

OPTIONS = {"every-pair": {"estimator": "every-pair"}, "importance": {"half_width": 5.0}}


def run_folder(kind, checkpoint, images, folder):
    """A run of this estimator."""
    return evaluate_nll(
        checkpoint, images, **OPTIONS[kind], out=folder, command=["ddpmbench", "nll"]
    )


def numbers(report):
    """Everything of a report that is a number and no time, in a row; distortion of 255 levels."""
    summary, sampling = report.summary, report.summary["sampling"]
    names = ("bits_per_dim", "half_width", "half_width_population", "prior", "kl", "decoder")
    values = [summary[name] for name in (*names, "num_evaluations")]
    values += [sampling.get("num_replicates"), *sampling.get("horvitz_thompson", {}).values()]
    curve = report.rate_distortion.drop(columns="psnr")  # in decibels, of the column before
    curve = curve / np.where(curve.columns.str.startswith("distortion"), 255, 1)
    steps = report.per_timestep.drop(columns="part")
    images = report.per_image.drop(columns="image_id")
    tables = (table.to_numpy(float).ravel() for table in (steps, curve, images))
    return np.concatenate([np.array(values, float), *tables])


def assert_same_numbers(report, other, tolerance=1e-6):
    """Fail where a number of two reports differs; rounding differs between batches."""
    np.testing.assert_allclose(numbers(report), numbers(other), rtol=0, atol=tolerance)


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
