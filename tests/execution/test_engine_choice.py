"""What is chosen depends on how long the run is and on what is measured, and stays chosen."""

import dataclasses
import json

import pytest
import torch

from ddpmbench.execution import engine_choice
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine import EngineChoice
from ddpmbench.execution.engine_choice import (
    COMPILE_SECONDS,
    ENGINE,
    WORTH_A_TEST,
    NetworkUse,
    at_once,
    fastest,
    settled_engine,
)
from ddpmbench.execution.session import Session
from ddpmbench.unet.timed_unet import Precision

CPU = torch.device("cpu")
ROWS = 100
PLAIN, LAST = EngineChoice(), EngineChoice(channels_last=True)
COMPILED = EngineChoice(channels_last=True, compiled=True)


@pytest.fixture
def measured(monkeypatch):
    """Seconds a batch of each choice, as a test would measure them; and which were tested."""
    seconds, asked = {LAST: 1.0, PLAIN: 2.0, COMPILED: 0.5}, []

    def measure(checkpoint, use, device, choice):
        asked.append(choice)
        if isinstance(seconds[choice], Exception):
            raise seconds[choice]
        return seconds[choice]

    monkeypatch.setattr(engine_choice, "_batch_seconds", measure)
    return seconds, asked


def chosen(model, batches, precision=Precision.FP32, note=lambda line: None):
    use = NetworkUse((1, 8, 8), int(batches * ROWS), ROWS)
    return fastest(model, use, device=CPU, precision=precision, note=note)


def test_a_small_run_pays_for_no_test_and_a_short_one_for_one_call(small_model, measured):
    seconds, asked = measured
    assert chosen(small_model, 499) == at_once(small_model, CPU, Precision.FP32) == LAST
    assert asked == []
    seconds[LAST] = WORTH_A_TEST / 600
    assert chosen(small_model, 599) == LAST
    assert asked == [LAST]


def test_the_fastest_is_chosen(small_model, measured):
    seconds, asked = measured
    assert chosen(small_model, 500) == LAST
    # What chance could decide is not decided.
    seconds[PLAIN] = 0.96
    assert chosen(small_model, 500) == LAST
    seconds[PLAIN] = 0.94
    assert chosen(small_model, 500) == PLAIN
    assert COMPILED not in asked


def test_compilation_is_tried_only_where_it_can_be_won_back(small_model, measured):
    seconds, asked = measured
    # A tenth of the run is what compiling takes.
    break_even = 10 * COMPILE_SECONDS["cpu"] / (0.95 * seconds[LAST])
    assert chosen(small_model, break_even - 1) == LAST
    assert COMPILED not in asked
    assert chosen(small_model, break_even + 1) == COMPILED
    # Tried is not chosen.
    seconds[COMPILED] = 1.1
    assert chosen(small_model, break_even + 1) == LAST


def test_nobody_waits_for_the_compiler_without_a_line(small_model, measured, tmp_path):
    """It comes before the compilation, in a resumed run too."""
    _, asked = measured
    lines = []

    def note(line):
        assert COMPILED not in asked
        lines.append(line)

    chosen(small_model, 500, note=note)
    assert lines == []
    assert settle(small_model, tmp_path, batches=10_000, note=note) == COMPILED
    asked.clear()
    assert settle(small_model, tmp_path, batches=10_000, note=note) == COMPILED
    assert len(lines) == 2
    assert all("compiling the network" in line and "60 s" in line for line in lines)


@pytest.mark.parametrize(
    ("choice", "error"),
    [
        (COMPILED, RuntimeError("no compiler")),
        (LAST, RuntimeError("unable to allocate: can't allocate memory")),
        (LAST, MemoryError()),
        (LAST, torch.OutOfMemoryError()),
    ],
    ids=str,
)
def test_a_test_that_fails_leaves_the_known_choice(small_model, measured, choice, error):
    seconds, _ = measured
    seconds[choice] = error
    assert chosen(small_model, 10_000) == LAST


def settle(model, folder, precision=Precision.FP32, batches=500, note=lambda line: None):
    use = NetworkUse((1, 8, 8), batches * ROWS, ROWS)
    session = Session(Ranks(), CPU, folder)
    return settled_engine(model, use, session, precision=precision, note=note).choice


def test_a_run_that_goes_on_goes_on_in_the_same_way(small_model, measured, tmp_path):
    seconds, _ = measured
    seconds[PLAIN] = 0.9
    assert settle(small_model, tmp_path) == PLAIN
    seconds[PLAIN] = 2.0
    assert settle(small_model, tmp_path) == PLAIN
    assert settle(small_model, None) == LAST
    # A damaged file is no reason to stop.
    (tmp_path / ENGINE).write_text('{"channels_last": 3')
    assert settle(small_model, tmp_path) == LAST
    assert json.loads((tmp_path / ENGINE).read_text())["channels_last"] is True


def test_what_another_machine_chose_is_taken_where_it_can_be(small_model, measured, tmp_path):
    seconds, _ = measured
    settle(small_model, tmp_path, batches=10_000)
    record = json.loads((tmp_path / ENGINE).read_text())
    assert record["compiled"] is True
    assert settle(small_model, tmp_path, batches=10_000) == COMPILED
    # Without a compiler,
    seconds[COMPILED] = RuntimeError("no compiler")
    assert settle(small_model, tmp_path, batches=10_000) == LAST
    # or on a device of another kind, it is chosen again.
    (tmp_path / ENGINE).write_text(json.dumps({**record, "device": "cuda", "cuda_graph": True}))
    assert settle(small_model, tmp_path, batches=10_000) == LAST


def test_a_network_without_layouts_is_not_said_to_have_one(small_model, measured):
    own = dataclasses.replace(small_model, network=torch.nn.Identity())
    seconds, asked = measured
    seconds[PLAIN] = 1.0
    assert chosen(own, 500) == PLAIN
    assert asked == [PLAIN]


def test_a_real_test_of_a_real_network(small_model, monkeypatch):
    """No stand-in: candidates are built, called and timed."""
    monkeypatch.setattr(engine_choice, "WORTH_A_TEST", 0.0)
    monkeypatch.setattr("ddpmbench.execution.timing.LEAST_SECONDS", 0.0)
    tested, real = [], engine_choice._batch_seconds

    def spy(checkpoint, use, device, choice):
        tested.append((choice, real(checkpoint, use, device, choice)))
        return tested[-1][1]

    monkeypatch.setattr(engine_choice, "_batch_seconds", spy)
    use = NetworkUse((1, 8, 8), 2000, 4)
    best = fastest(small_model, use, device=CPU, precision=Precision.BF16)
    assert {choice for choice, _ in tested} == {
        EngineChoice(Precision.BF16),
        EngineChoice(Precision.BF16, channels_last=True),
    }
    (known, first), (other, second) = tested
    assert best == (other if second < 0.95 * first else known)
    assert min(first, second) > 0
