"""Runs in low precision: corrected to the bound in strict float32, whatever happens to them."""

import copy
import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch
from engines import biased, biased_and_rounded, install, noisy
from oracles import oracle_checkpoint, oracle_images

import ddpmbench as db
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.precision import CorrectionDesign, differences, estimate_correction
from ddpmbench.likelihood.terms import TermIndex, TermsPass, TermTable, concatenate
from ddpmbench.report.rate_distortion import printed_rate_distortion
from ddpmbench.unet.timed_unet import Precision

CPU = torch.device("cpu")
WIDE, NARROW = 0.1, 0.06  # reached at the first look, and some looks later
PARTS = ("prior", "kl", "decoder")


@pytest.fixture
def engines(monkeypatch):
    return functools.partial(install, monkeypatch)


def numbers(report):
    of = report.summary
    names = ("bits_per_dim", "half_width", "half_width_population", *PARTS, "num_evaluations")
    record = of["precision_correction"]
    plain = of["sampling"].get("horvitz_thompson", {})
    steps = report.per_timestep.drop(columns="part").to_numpy().ravel()
    return np.concatenate([[of[n] for n in names], [*record.values(), *plain.values()], steps])


def same(one, other):
    np.testing.assert_allclose(numbers(one), numbers(other), rtol=0, atol=1e-6)


# ---- the bound of the network as it is


@pytest.mark.parametrize("rounding", [biased, biased_and_rounded])
def test_a_biased_engine_is_corrected_to_the_bound_in_float32(engines, rounding):
    images = oracle_images()
    model = oracle_checkpoint(images, spread=0.3)
    engines(rounding=rounding)
    options = {"estimator": "every-pair", "draws": 60}
    strict = db.evaluate_nll(model, images, **options).summary
    low = db.evaluate_nll(model, images, **options, precision="bf16").summary
    # Both have the same rows and noise: what is left is the error of the correction.
    record = low["precision_correction"]
    assert abs(low["bits_per_dim"] - strict["bits_per_dim"]) < 1.5 * record["half_width"]
    assert abs(record["bits_per_dim"]) > 5 * record["half_width"]
    off = record["uncorrected_bits_per_dim"] - strict["bits_per_dim"]
    assert abs(off) > 5 * record["half_width"]
    for part in ("kl", "decoder"):
        assert abs(low[part] - strict[part]) < abs(record[part]) / 2


def test_its_interval_covers_over_repeats():
    images = oracle_images()
    model = oracle_checkpoint(images, spread=0.3)
    num_timesteps = model.schedule.num_timesteps

    def low(x_t, t, labels=None):
        return biased_and_rounded(model.model_output(x_t, t, labels))

    passes = [
        TermsPass(model, images, seed=1, decoder="exact", device=CPU, model_output=output)
        for output in (None, low)
    ]

    def both(rows):
        parts = [rows[a : a + 5000] for a in range(0, len(rows), 5000)]
        return [concatenate([one.terms(part) for part in parts]) for one in passes]

    every = EveryPairDesign(len(images), num_timesteps, 50)
    strict, rounded = (table.values["nats"] for table in both(every.index(0, len(every))))
    truth = (strict - rounded).mean() * num_timesteps
    size = 120
    designs = [CorrectionDesign(len(images), num_timesteps, seed, size) for seed in range(250)]
    rows = [design.index(0, size) for design in designs]
    # No two repeats have a draw of the noise in common.
    image, t, draw = (
        np.concatenate([getattr(of, name) for of in rows]) for name in ("image", "t", "draw")
    )
    draw += np.repeat(np.arange(len(designs)), size) * (1 + draw.max() - draw.min())
    tables = both(TermIndex(image, t, draw))
    covered = []
    for k, design in enumerate(designs):
        parts = (TermTable(rows[k], table[k * size : (k + 1) * size].values) for table in tables)
        result = estimate_correction(design, differences(design, *([part] for part in parts)))
        covered.append(abs(result.nats - truth) <= result.half_width)
    assert 0.91 <= np.mean(covered) <= 0.99


def test_the_summary_adds_up(engines, small_model, small_images):
    engines()
    report = db.evaluate_nll(small_model, small_images, half_width=WIDE, precision="bf16")
    of = report.summary
    record = of["precision_correction"]
    assert of["precision"] == "bf16"
    assert sum(of[part] for part in PARTS) == pytest.approx(of["bits_per_dim"], abs=1e-9)
    assert record["bits_per_dim"] == pytest.approx(record["kl"] + record["decoder"])
    assert of["bits_per_dim"] == pytest.approx(
        record["uncorrected_bits_per_dim"] + record["bits_per_dim"], abs=1e-12
    )
    # Tables are as the rows have them.
    steps = report.per_timestep.bits_per_dim.sum() + of["prior"]
    assert steps == pytest.approx(record["uncorrected_bits_per_dim"], abs=1e-7)
    curve = db.rate_distortion(report)
    assert curve.summary["precision_correction"] == record
    text = printed_rate_distortion(curve.summary, curve.curve, "table")
    assert "bf16, corrected by " in text
    assert "in bf16, uncorrected" in text


def test_strict_float32_makes_no_other_call_and_has_no_correction(
    engines, small_model, small_images, tmp_path
):
    calls = engines()
    result = db.evaluate_nll(small_model, small_images, half_width=WIDE, out=tmp_path / "run")
    assert result.summary["precision_correction"] is None
    assert {precision for precision, _ in calls} == {Precision.FP32}
    assert sum(n for _, n in calls) == result.summary["num_evaluations"]
    assert not list((tmp_path / "run" / "shards").glob("correction*"))


def test_the_calls_are_counted_in_either_precision(engines, small_model, small_images):
    calls = engines()
    of = db.evaluate_nll(small_model, small_images, half_width=WIDE, precision="fp16").summary
    record = of["precision_correction"]
    strict = sum(n for precision, n in calls if precision is Precision.FP32)
    assert strict == record["num_evaluations"] // 2
    assert sum(n for _, n in calls) == of["num_evaluations"]


def test_the_difference_to_continuous_time_is_in_strict_float32(engines, small_model, small_images):
    calls = engines()
    options = {"estimator": "every-pair", "continuous": True}

    def difference(**how):
        of = db.evaluate_nll(small_model, small_images, **options, **how).summary
        return of["continuous_bits_per_dim"] - of["bits_per_dim"]

    strict = difference()
    calls.clear()
    low = difference(precision="bf16")
    assert low == pytest.approx(strict, abs=1e-7)
    assert sum(n for precision, n in calls if precision is Precision.BF16) == 40 * 6 * 2 + 100


def test_a_run_in_continuous_time_is_corrected(engines, small_model, small_images):
    engines()
    model, options = small_model.in_continuous_time(), {"estimator": "every-pair", "draws": 6}
    strict = db.evaluate_nll(model, small_images, **options).summary
    low = db.evaluate_nll(model, small_images, **options, precision="bf16").summary
    record = low["precision_correction"]
    off = record["uncorrected_bits_per_dim"] - strict["bits_per_dim"]
    assert abs(low["bits_per_dim"] - strict["bits_per_dim"]) < 1.5 * record["half_width"]
    assert abs(off) > 3 * record["half_width"]


# ---- the goal is for the whole interval


def test_the_half_width_asked_for_is_that_of_the_corrected_bound(
    engines, small_model, small_images
):
    engines(rounding=noisy)
    of = db.evaluate_nll(small_model, small_images, half_width=NARROW, precision="bf16").summary
    record = of["precision_correction"]
    assert record["half_width"] > NARROW / 3
    assert record["half_width"] < of["half_width"] <= NARROW


def test_a_correction_that_is_too_wide_is_said(engines, small_model, small_images):
    engines(rounding=lambda output: output + output.roll(1, 0).sign())
    warnings = []
    options = {"precision": "bf16", "listener": RunListener(warn=warnings.append)}
    of = db.evaluate_nll(small_model, small_images, half_width=0.25, **options).summary
    assert of["precision_correction"]["half_width"] > 0.25
    (line,) = (line for line in warnings if "raw pixels" not in line)
    assert "wider than +- 0.25" in line
    assert "`precision=fp32`" in line


def test_the_limit_of_calls_holds_with_those_of_the_correction(engines, small_model, small_images):
    calls = engines()
    options = {"half_width": 1e-4, "precision": "bf16"}
    of = db.evaluate_nll(small_model, small_images, **options, max_evaluations=1500).summary
    assert 1300 < sum(n for _, n in calls) == of["num_evaluations"] <= 1500
    with pytest.raises(db.InputError, match="`max_evaluations=900`: 6 images take 920"):
        db.evaluate_nll(small_model, small_images, **options, max_evaluations=900)
    # In strict float32 that many are enough.
    db.evaluate_nll(small_model, small_images, half_width=1e-4, max_evaluations=910)


# ---- bookkeeping cannot change it


def test_a_narrower_interval_goes_on_with_the_same_correction(
    engines, small_model, small_images, tmp_path
):
    calls = engines()
    options = {"precision": "bf16", "out": tmp_path / "run"}
    first = db.evaluate_nll(small_model, small_images, half_width=WIDE, **options)
    made = dict.fromkeys((tmp_path / "run" / "shards").glob("correction-*"))
    assert {path.name.split("-")[1] for path in made} == {"bf16", "fp32"}
    calls.clear()
    second = db.evaluate_nll(small_model, small_images, half_width=NARROW, **options)
    assert {precision for precision, _ in calls} == {Precision.BF16}
    assert dict.fromkeys((tmp_path / "run" / "shards").glob("correction-*")) == made
    for name in ("bits_per_dim", "half_width"):
        of_first, of_second = (r.summary["precision_correction"][name] for r in (first, second))
        assert of_first == of_second
    fresh = db.evaluate_nll(small_model, small_images, half_width=NARROW, precision="bf16")
    same(second, fresh)
    calls.clear()
    same(db.evaluate_nll(small_model, small_images, half_width=WIDE, **options), first)
    assert not calls


def test_batch_size_cannot_change_a_number(engines, small_model, small_images):
    engines()
    options = {"half_width": WIDE, "precision": "bf16"}
    one = db.evaluate_nll(small_model, small_images, **options, batch_size=11)
    same(one, db.evaluate_nll(small_model, small_images, **options, batch_size=37))


def test_a_folder_is_of_one_precision(engines, small_model, small_images, tmp_path):
    engines()
    options = {"half_width": WIDE, "out": tmp_path / "run"}
    there = db.evaluate_nll(small_model, small_images, **options, precision="bf16")
    for other in ("fp16", "fp32"):
        with pytest.raises(db.InputError, match=f"precision is bf16 there, {other} here"):
            db.evaluate_nll(small_model, small_images, **options, precision=other)
    # Auto is that of the folder.
    auto = db.evaluate_nll(small_model, small_images, **options, precision="auto", device="cpu")
    same(auto, there)


def test_what_overflows_is_laid_to_the_precision(engines, small_model, small_images):
    engines(rounding=lambda output: output / 0)
    options = {"half_width": WIDE, "precision": "fp16"}
    with pytest.raises(db.InputError, match="`precision=fp16`: the network's output is not f"):
        db.evaluate_nll(small_model, small_images, **options)


# ---- differences between runs


@pytest.fixture(scope="module")
def pair(small_model, small_images, tmp_path_factory):
    """Folders of two models in low precision, and of the first in strict float32."""
    folder = tmp_path_factory.mktemp("pair")
    models = {"one": small_model, "two": further_on(small_model)}
    kinds = {"importance": {"half_width": WIDE}, "pairs": {"estimator": "every-pair"}}
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        for kind, options in kinds.items():
            for name, model in models.items():
                how = {**options, "precision": "bf16", "out": folder / f"{kind}-{name}"}
                db.evaluate_nll(model, small_images, **how)
        db.evaluate_nll(small_model, small_images, half_width=WIDE, out=folder / "strict")
    return folder


def further_on(model):
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        for weight in network.parameters():
            weight *= 1.01
    return dataclasses.replace(model, network=network, sha256="1" * 64)


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_differences_are_of_corrected_bounds(pair, tmp_path):
    for kind in ("importance", "pairs"):
        one, two = pair / f"{kind}-one", pair / f"{kind}-two"
        summary = db.compare([one, two], out=tmp_path / f"compare-{kind}").summary
        (run,) = summary["runs"]
        first, second = (summary_of(folder) for folder in (one, two))
        expected = second["bits_per_dim"] - first["bits_per_dim"]
        assert run["difference"] == pytest.approx(expected, abs=1e-9)
        # The rows of the corrections are the same too, and their errors mostly cancel.
        unpaired = math.hypot(first["half_width"], second["half_width"])
        assert run["difference_half_width"] < unpaired
        assert summary["precision"] == "bf16"
        assert (
            "differences are corrected"
            in (tmp_path / f"compare-{kind}" / "report.html").read_text()
        )
    same_run = db.compare([pair / "importance-one", pair / "importance-one"]).summary["runs"][0]
    assert same_run["difference"] == same_run["difference_half_width"] == 0


def test_runs_in_other_precisions_are_not_compared(pair):
    with pytest.raises(db.InputError, match="precision is bf16"):
        db.compare([pair / "strict", pair / "importance-one"])
