"""What is timed, by a clock that only the work moves."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.evaluate.speed import calls_frame, parts_frame
from ddpmbench.execution import speed as row_parts
from ddpmbench.execution import timing
from ddpmbench.execution.engine import Engine, EngineChoice
from ddpmbench.execution.speed import (
    FIRST,
    LATER,
    MeasuredSpeed,
    fastest_call,
    fitting_probe,
    likelihood_work,
    measured,
)
from ddpmbench.execution.timing import (
    CallSpeed,
    Probe,
    batch_sizes,
    call_speeds,
    engine_choices,
    gray_images,
    spread_rows,
)
from ddpmbench.likelihood import terms
from ddpmbench.samples import chain
from ddpmbench.unet.timed_unet import Precision

CPU = torch.device("cpu")
FP32, BF16 = Precision.FP32, Precision.BF16
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


def speeds(model, images, *, size=4, precisions=(FP32,)):
    return measured(probe_of(model, images, size), precisions)


def test_the_parts_of_a_row_are_what_its_parts_take(small_model, small_images, engine_takes):
    engine_takes(lambda choice, size: 1.0 + size)
    first, later, step = speeds(small_model, small_images).parts[FP32]
    for part in (first, later, step):
        assert part.network == pytest.approx(5 / 4)
        assert part.noise == pytest.approx(NOISE / 4)
        assert part.network + part.noise + part.rest == part.seconds
    assert first.rest == pytest.approx(ELSE / 4)
    assert later.rest == pytest.approx(ELSE / 4)
    assert step.rest == pytest.approx(0)


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
    for part in speeds(small_model, small_images).parts[FP32]:
        assert min(part.network, part.noise, part.rest) >= 0
        assert part.network + part.noise + part.rest == part.seconds < 40 / 4


def test_an_image_takes_its_share_of_a_batch(small_model, small_images, engine_takes):
    engine_takes(lambda choice, size: 1.0 + size)
    result = speeds(small_model, small_images, size=16)
    assert {call.batch_size for call in result.calls} == {1, 8, 16}
    for call in result.calls:
        assert call.seconds == pytest.approx((1 + call.batch_size) / call.batch_size)
        assert call.per_second == 1 / call.seconds
    frame = calls_frame(result)
    assert frame.ms_per_batch.tolist() == [1000.0 * (1 + size) for size in frame.batch_size]
    assert frame.share_of_peak.tolist() == pytest.approx(
        [result.flop_per_call * speed / 1e9 for speed in frame.evaluations_per_second]
    )


def test_rows_are_timed_with_the_fastest_engine_of_each_precision(
    small_model, small_images, engine_takes
):
    slow = {(FP32, False): 1.0, (FP32, True): 7.0, (BF16, False): 5.0, (BF16, True): 3.0}
    engine_takes(lambda choice, size: slow[choice.precision, choice.channels_last])
    result = speeds(small_model, small_images, precisions=(FP32, BF16))
    assert result.parts[FP32][0].network == pytest.approx(1.0 / 4)
    assert result.parts[BF16][0].network == pytest.approx(3.0 / 4)
    assert not fastest_call(result.calls, FP32).choice.channels_last
    frame = parts_frame(result)
    assert (frame.ms - frame.network - frame.noise - frame.rest).abs().max() < 1e-9


def test_the_error_is_how_far_the_noise_is_off_from_float32(
    small_model, small_images, monkeypatch, engine_takes
):
    engine_takes(lambda choice, size: 1.0)
    real = Engine.model_output

    def rounded(engine, x_t, t, labels=None):
        output = real(engine, x_t, t, labels)
        return output * 1.03 if engine.choice.precision is BF16 else output

    monkeypatch.setattr(Engine, "model_output", rounded)
    result = speeds(small_model, small_images, precisions=(FP32, BF16))
    for call in result.calls:
        expected = 0.03 if call.choice.precision is BF16 else 0.0
        assert call.eps_error == pytest.approx(expected, abs=0.01 if expected else 1e-5)


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
    speed = measured(probe_of(small_model, small_images), tell=lines.append)
    assert list(speed.parts) == [FP32]
    assert any(line.startswith("Left out: `precision=bf16`") for line in lines)
    with pytest.raises(InputError, match="`precision=bf16`"):
        speeds(small_model, small_images, precisions=(BF16,))


def test_compiling_breaks_even_where_the_time_is_won_back():
    plain = CallSpeed(EngineChoice(), 8, 0.03, 0.1, 0.0)
    calls = [
        plain,
        CallSpeed(EngineChoice(channels_last=True), 8, 0.02, 0.1, 0.0),
        CallSpeed(EngineChoice(compiled=True), 8, 0.01, 10.0, 0.0),
        CallSpeed(EngineChoice(compiled=True, cuda_graph=True), 8, 0.05, 10.0, 0.0),
    ]
    frame = calls_frame(MeasuredSpeed(calls, {}, {}, 1))
    # Against the better of the two that are not compiled.
    assert frame.break_even_evaluations[2] == pytest.approx(10.0 / (0.02 - 0.01))
    assert frame.break_even_evaluations[[0, 1, 3]].isna().all()


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
        made.append(choice)
        plain = dataclasses.replace(choice, compiled=False)
        real(engine, checkpoint, device=device, choice=plain, rows=rows)

    monkeypatch.setattr(Engine, "__init__", make)
    compiled = EngineChoice(compiled=True)
    call_speeds(probe_of(small_model, small_images), compiled, [1, 4])
    assert made == [compiled] * 2


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
