"""A real network's recorded outputs, and the terms that two other implementations gave them."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch

from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood import terms

LN2 = math.log(2)
SLICE = Path(__file__).parent / "data" / "trace_slice.npz"
WHOLE = Path(__file__).parents[2] / "shared" / "data" / "trace_fashion_T100.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """A network's recorded outputs and the terms that others computed from them.

    Attributes:
        images: (N, H, W) uint8.
        t: (S,) the steps that were kept.
        eps: (S, N, 1, H, W).
        model_output: (S, N, 1, H, W).
        alphas_cumprod: (T,).
        prior: (N,) bits/dim.
        terms: (S, N) bits/dim for each of "exact_fixed_small_clip", "openai_...", ...
    """

    images: np.ndarray
    t: np.ndarray
    eps: np.ndarray
    model_output: np.ndarray
    alphas_cumprod: np.ndarray
    prior: np.ndarray
    terms: dict[str, np.ndarray]


def load_trace(path: Path) -> Trace:
    """The whole file, or the slice of it in tests/data, which lists its steps as `t`."""
    with np.load(path) as z:
        arrays = {name: z[name] for name in z.files}
    t = arrays.get("t", np.arange(1, len(arrays["alphas_cumprod"]) + 1))
    kept = {k.removeprefix("terms_"): v for k, v in arrays.items() if k.startswith("terms_")}
    fields = {f.name for f in dataclasses.fields(Trace)} - {"t", "terms"}
    return Trace(t=t, terms=kept, **{name: arrays[name] for name in fields})


def check_trace(trace: Trace) -> None:
    """Its terms to 1e-5 bits/dim, and those of the authors' code to the width of its tanh."""
    schedule = NoiseSchedule.from_alphas_cumprod(trace.alphas_cumprod)
    num_steps, num_images = trace.eps.shape[:2]
    pixels = torch.from_numpy(trace.images)[None, :, None].double()
    x_start = (pixels / 127.5 - 1).expand(trace.eps.shape).flatten(0, 1)
    eps, output = (torch.from_numpy(a).flatten(0, 1) for a in (trace.eps, trace.model_output))
    t = torch.from_numpy(trace.t).repeat_interleave(num_images)
    for variance in ("fixed_small", "fixed_large"):
        for clip in ("clip", "noclip"):
            for decoder, theirs in (("exact", "exact"), ("tanh", "openai")):
                result = terms.bound_terms(
                    schedule,
                    x_start,
                    t,
                    eps,
                    output,
                    variance=variance,
                    clip=clip == "clip",
                    decoder=decoder,
                )
                got = result.bits_per_dim.reshape(num_steps, num_images).numpy()
                error = np.abs(got - trace.terms[f"{theirs}_{variance}_{clip}"])
                first = trace.t == 1
                limits = (1e-5, 1e-5) if decoder == "exact" else (5e-6, 1e-4)
                where = f"{variance}, {clip}, {decoder}"
                assert error[~first].max() < limits[0], where
                assert error[first].max() < limits[1], where
                column = f"decoder_posterior_{decoder}_{clip}"
                column = result.decoders[column].reshape(num_steps, num_images)[first].numpy()
                np.testing.assert_allclose(column / LN2, got[first], rtol=1e-12)
    prior = terms.prior_bits_per_dim(schedule, x_start[:num_images]).numpy()
    np.testing.assert_allclose(prior, trace.prior, atol=1e-7)
