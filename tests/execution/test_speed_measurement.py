"""What is timed, by a clock that only the work moves."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import ddpmbench as db
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution import speed as row_parts
from ddpmbench.execution import timing
from ddpmbench.execution.engine import Engine, EngineChoice
from ddpmbench.execution.speed import (
    FIRST,
    LATER,
    STEP,
    batch_sizes,
    break_even,
    engine_choices,
    fastest_engines,
    fitting_probe,
    likelihood_work,
    measure_calls,
    measure_parts,
)
from ddpmbench.execution.timing import Probe, gray_images, spread_rows
from ddpmbench.likelihood import terms
from ddpmbench.samples import chain
from ddpmbench.unet.timed_unet import Precision

CPU = torch.device("cpu")
FP32, BF16 = Precision.FP32, Precision.BF16
PLAIN = EngineChoice()
NOISE, ELSE = 2.0, 0.5


class Clock:
    """Stands still but for the work."""

    def __init__(self):
        self.now = 0.0

    def timer(self, device):
        return lambda: self.now

    def taking(self, seconds, function):
        def call(*arguments, **options):
            self.now += seconds
            return function(*arguments, **options)

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "timer", clock.timer)
    for module in (terms, chain, row_parts):
        noise = clock.taking(NOISE, module.normal_noise)
        monkeypatch.setattr(module, "normal_noise", noise)
    monkeypatch.setattr(terms, "diffusion_terms", clock.taking(ELSE, terms.diffusion_terms))
    peak = clock.taking(1.0, lambda *_, **__: 1e9)
    monkeypatch.setattr("ddpmbench.execution.speed.matmul_peak", peak)
    return clock


@pytest.fixture
def engine_takes(clock, monkeypatch):
    """Makes a network call take so long, by the precision and the number of images."""
    real = Engine.model_output

    def make(seconds):
        def call(engine, x_t, t, labels=None):
            clock.now += seconds(engine.choice, len(x_t))
            return real(engine, x_t, t, labels)

        monkeypatch.setattr(Engine, "model_output", call)

    return make


def probe_of(model, images, size=4):
    return fitting_probe(model, images, CPU, batch_size=size)


def calls_of(model, images, *, size=4, precisions=(FP32,)):
    return measure_calls(probe_of(model, images, size), precisions)


def parts_of(model, images, choice=PLAIN):
    return measure_parts(probe_of(model, images), choice)


def test_the_parts_of_a_row_are_what_its_parts_take(small_model, small_images, engine_takes):
    engine_takes(lambda choice, size: 1.0 + size)
    parts = parts_of(small_model, small_images)
    assert parts.row.tolist() == [FIRST, LATER, STEP]
    np.testing.assert_allclose(parts.network, 1000 * 5 / 4)
    np.testing.assert_allclose(parts.noise, 1000 * NOISE / 4)
    np.testing.assert_allclose(parts.rest, [1000 * ELSE / 4] * 2 + [0], atol=1e-9)
    np.testing.assert_allclose(parts.ms, parts.network + parts.noise + parts.rest)


def test_the_decoder_is_in_the_rows_of_the_first_step_alone(small_model, small_images):
    probe = probe_of(small_model, small_images, 40)
    assert 1 in probe.rows.t
    engine = Engine(small_model, device=CPU, choice=EngineChoice())
    for kind in (FIRST, LATER):
        with engine.running():
            t = likelihood_work(probe, engine, kind)().index.t
        assert len(t) == 40
        assert ((t == 1) == (kind == FIRST)).all()


def test_parts_that_alone_take_longer_than_all_of_it_still_add_up(
    small_model, small_images, clock, engine_takes, monkeypatch
):
    engine_takes(lambda choice, size: 4.0)
    # Within a row, noise costs nothing; alone it does, more than all else.
    monkeypatch.setattr(row_parts, "normal_noise", clock.taking(40.0, row_parts.normal_noise))
    parts = parts_of(small_model, small_images)
    assert (parts[["network", "noise", "rest"]] >= 0).all(axis=None)
    assert (parts.ms < 1000 * 40 / 4).all()
    np.testing.assert_allclose(parts.ms, parts.network + parts.noise + parts.rest)


def test_an_image_takes_its_share_of_a_batch(small_model, small_images, engine_takes):
    engine_takes(lambda choice, size: 1.0 + size)
    settings = db.SpeedSettings(precisions=(FP32,))
    report = db.measure_speed(
        small_model, small_images, settings=settings, device="cpu", batch_size=16, progress=False
    )
    calls, size = report.calls, report.calls.batch_size
    assert set(size) == {1, 8, 16}
    np.testing.assert_allclose(calls.evaluations_per_second, size / (1 + size))
    np.testing.assert_allclose(calls.ms_per_batch, 1000.0 * (1 + size))
    flop = report.summary["flop_per_call"] * calls.evaluations_per_second
    np.testing.assert_allclose(calls.tflops, flop / 1e12)
    np.testing.assert_allclose(calls.share_of_peak, flop / 1e9)


def test_rows_are_timed_with_the_fastest_engine_of_each_precision(
    small_model, small_images, engine_takes
):
    slow = {(FP32, False): 1.0, (FP32, True): 7.0, (BF16, False): 5.0, (BF16, True): 3.0}
    engine_takes(lambda choice, size: slow[choice.precision, choice.channels_last])
    best = fastest_engines(calls_of(small_model, small_images, precisions=(FP32, BF16)))
    assert best == [PLAIN, EngineChoice(BF16, channels_last=True)]
    for choice in best:
        parts = parts_of(small_model, small_images, choice)
        assert parts.network[0] == pytest.approx(
            1000 * slow[choice.precision, choice.channels_last] / 4
        )
        assert set(parts.precision) == {str(choice.precision)}


def test_the_largest_batch_decides_which_engine_is_the_fastest():
    calls = pd.DataFrame(
        {
            "precision": "fp32",
            "channels_last": [False, False, True, True],
            "compiled": False,
            "cuda_graph": False,
            "batch_size": [1, 8, 1, 8],
            "evaluations_per_second": [9.0, 3.0, 2.0, 4.0],
        }
    )
    assert fastest_engines(calls) == [EngineChoice(channels_last=True)]


def test_the_error_is_how_far_the_noise_is_off_from_float32(
    small_model, small_images, monkeypatch, engine_takes
):
    engine_takes(lambda choice, size: 1.0)
    real = Engine.model_output

    def rounded(engine, x_t, t, labels=None):
        output = real(engine, x_t, t, labels)
        return output * 1.03 if engine.choice.precision is BF16 else output

    monkeypatch.setattr(Engine, "model_output", rounded)
    calls = calls_of(small_model, small_images, precisions=(FP32, BF16))
    narrow = calls.precision == "bf16"
    np.testing.assert_allclose(calls.eps_error[narrow], 0.03, rtol=0, atol=0.01)
    assert (calls.eps_error[~narrow] < 1e-5).all()
    assert narrow.any()
    assert not narrow.all()


def refusing(monkeypatch, precision):
    def refuse(engine, checkpoint, *, device, choice, rows):
        if choice.precision is precision:
            raise InputError("`precision=bf16`: not here")
        real(engine, checkpoint, device=device, choice=choice, rows=rows)

    real = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", refuse)


def test_what_the_device_lacks_is_left_out_unless_it_was_asked_for(
    small_model, small_images, monkeypatch, engine_takes
):
    engine_takes(lambda choice, size: 1.0)
    refusing(monkeypatch, BF16)
    lines = []
    calls = measure_calls(probe_of(small_model, small_images), tell=lines.append)
    assert set(calls.precision) == {"fp32"}
    assert any(line.startswith("Left out: `precision=bf16`") for line in lines)
    with pytest.raises(InputError, match="`precision=bf16`"):
        calls_of(small_model, small_images, precisions=(BF16,))


def test_compiling_breaks_even_where_the_time_is_won_back():
    calls = pd.DataFrame(
        {
            "precision": ["fp32"] * 4 + ["bf16"] * 2,
            "batch_size": [8] * 5 + [1],
            "compiled": [False, False, True, True, False, True],
            "evaluations_per_second": 1 / np.array([0.03, 0.02, 0.01, 0.05, 0.001, 0.001]),
            "first_seconds": [0.1, 0.1, 10.0, 10.0, 0.1, 10.0],
        }
    )
    evaluations = break_even(calls)
    # Against the better of the two that are not compiled; of that precision and batch size.
    assert evaluations[2] == pytest.approx(10.0 / (0.02 - 0.01))
    assert evaluations.drop(2).isna().all()


def test_compiling_is_tried_when_asked_for_and_graphs_on_a_gpu():
    flags = {
        (device, compiled): {
            (choice.compiled, choice.cuda_graph)
            for choice in engine_choices(torch.device(device), (FP32,), compiled=compiled)
        }
        for device in ("cpu", "cuda")
        for compiled in (False, True)
    }
    assert flags["cpu", False] == flags["cuda", False] == {(False, False)}
    assert flags["cpu", True] == {(False, False), (True, False)}
    assert flags["cuda", True] == {(False, False), (True, False), (True, True)}


def test_a_compiled_network_is_made_for_each_size(
    small_model, small_images, monkeypatch, engine_takes
):
    engine_takes(lambda choice, size: 1.0)
    made = []
    real = Engine.__init__

    def make(engine, checkpoint, *, device, choice, rows):
        made.append((choice, rows))
        plain = dataclasses.replace(choice, compiled=False)
        real(engine, checkpoint, device=device, choice=plain, rows=rows)

    monkeypatch.setattr(Engine, "__init__", make)
    compiled = EngineChoice(channels_last=True, compiled=True)
    measure_calls(probe_of(small_model, small_images), (FP32,), compiled=True)
    assert [one for one in made if one[0].compiled] == [(compiled, 1), (compiled, 4)]


def test_batches_grow_to_the_largest():
    for largest in (1, 5, 8, 48):
        sizes = batch_sizes(largest)
        assert sizes == sorted(set(sizes))
        assert (sizes[0], sizes[-1]) == (1, largest)


@pytest.mark.parametrize(("steps", "count"), [(1, 4), (40, 1), (40, 7), (1000, 48)])
def test_rows_are_spread_over_all_steps(steps, count):
    t = spread_rows(6, steps, count).t
    assert ((t >= 1) & (t <= steps)).all()
    share = np.array([(t <= steps * part).mean() for part in (0.25, 0.5, 0.75)])
    if steps > count > 4:
        assert np.abs(share - [0.25, 0.5, 0.75]).max() <= 1 / count


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    small_model, small_images, monkeypatch, clock
):
    real = Checkpoint.model_output

    def small(checkpoint, x_t, t, labels=None):
        if len(x_t) > 100:
            raise torch.OutOfMemoryError("out of memory")
        return real(checkpoint, x_t, t, labels)

    monkeypatch.setattr(Checkpoint, "model_output", small)
    lines = []
    probe = fitting_probe(small_model, small_images, CPU, tell=lines.append)
    assert 50 < len(probe.rows) <= 100
    assert "`batch_size=" in lines[-1]
    with pytest.raises(InputError, match="`batch_size=101`"):
        fitting_probe(small_model, small_images, CPU, batch_size=101)


def test_a_slow_network_has_a_smaller_batch(small_model, small_images, clock, monkeypatch):
    taking = clock.taking(0.1, Checkpoint.model_output)
    monkeypatch.setattr(Checkpoint, "model_output", lambda *arguments: taking(*arguments))
    assert len(fitting_probe(small_model, small_images, CPU).rows) == 10


def test_a_network_of_classes_is_given_classes(small_model):
    class Network(nn.Module):
        def forward(self, x_t, time, labels):
            seen.append(labels.tolist())
            return x_t * 0.5

    seen = []
    model = dataclasses.replace(small_model, network=Network(), num_classes=3)
    images = gray_images((1, 8, 8), 6, 3)
    probe = Probe.of(model, images, CPU, 5)
    assert torch.isfinite(probe.strict_eps).all()
    assert seen == [[0, 1, 2, 0, 1]]
