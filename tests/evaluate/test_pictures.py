"""Pictures of a run: made once, with its noise, kept in its folder and drawn from there."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sealing import read_record

import ddpmbench as db
from ddpmbench.errors import InputError
from ddpmbench.evaluate import rate_distortion
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.stored_images import PICTURES, Pictures
from ddpmbench.execution.terms import read_terms
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import concatenate

PAIRS = {"estimator": "every-pair", "draws": 2}
STEPS = [40, 37, 33, 29, 25, 21, 17, 13, 9, 5, 1]  # of k = 1, 4, 8, ... of 40


@pytest.fixture
def run(runs, copied):
    """A copy that a test may draw in."""
    return dataclasses.replace(runs["every-pair"], folder=copied("every-pair"))


@pytest.fixture
def calls(small_model):
    """Counts the images that the network is called with."""
    counted = []
    hook = small_model.network.register_forward_hook(
        lambda module, inputs, output: counted.append(len(inputs[0]))
    )
    yield counted
    hook.remove()


def figures(folder):
    return {path.stem for path in (folder / "figures").iterdir()}


def test_the_error_under_a_picture_is_that_of_the_stored_row(small_model, small_images, run):
    result = db.progressive_pictures(small_model, small_images, run).decoding
    design = EveryPairDesign(6, 40, 2)
    shards = RunFolder(run.folder, read_record(run.folder / "run.json")).shards("terms")
    terms = concatenate(list(read_terms(shards, len(design))))
    assert list(result.t) == STEPS
    assert list(result.image) == list(range(6))
    np.testing.assert_array_equal(result.x_start, small_images.pixels)
    for n, k in np.ndindex(result.rmse.shape):
        rows = terms.index
        at = (rows.image == n) & (rows.t == result.t[k]) & (rows.draw == 0)
        (mse,) = terms.values["x_start_mse"][at]
        assert result.rmse[n, k] == pytest.approx(127.5 * np.sqrt(mse), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected", "names"),
    [
        ("none", 0, set()),
        ("decoding", 6 * 11, {"decoding"}),
        (
            "all",
            6 * 11 + 8 * 40 + 3 * 11 * 20,
            {"decoding", "generation", "interpolation"},
        ),
    ],
)
def test_the_calls_are_said_made_once_and_not_counted(
    small_model, small_images, run, calls, kind, expected, names
):
    counts, progress = [], []
    listener = RunListener(counts.append, lambda now: progress.append((now.done, now.total)))
    before = (run.folder / "summary.json").read_text()
    for again in range(2):
        result = db.progressive_pictures(
            small_model, small_images, run, pictures=kind, listener=listener
        )
        assert sum(calls) == expected, again
    assert counts == [expected] * bool(names)
    assert [done for done, _ in progress] == list(np.cumsum(calls))
    assert {total for _, total in progress} == ({expected} if names else set())
    assert (run.folder / "summary.json").read_text() == before
    assert {name for name, record in vars(result).items() if record is not None} == names
    if kind == "all":
        pictures = (run.folder / PICTURES).read_bytes()
        db.write_report(run.folder)
        assert sum(calls) == expected
        assert (run.folder / PICTURES).read_bytes() == pictures
        assert figures(run.folder) >= names
        decoding = pd.read_csv(run.folder / "figures" / "decoding.csv")
        assert list(decoding.t) == STEPS * 6
        rate = run.rate_distortion.set_index("t").rate_bits_per_dim
        assert list(decoding.rate_bits_per_dim) == list(rate.loc[decoding.t])


def test_another_depth_mixes_again_and_keeps_the_rest(small_model, small_images, run, calls):
    options = {"pictures": "all"}
    first = db.progressive_pictures(small_model, small_images, run, **options)
    assert first.interpolation.depth == 20
    calls.clear()
    second = db.progressive_pictures(small_model, small_images, run, depth=7, **options)
    assert sum(calls) == 3 * 11 * 7
    assert second.interpolation.depth == 7
    np.testing.assert_array_equal(first.generation.samples, second.generation.samples)
    assert [list(pair) for pair in second.interpolation.pair] == [[0, 1], [2, 3], [4, 5]]
    kept = Pictures.read(run.folder, 40)
    np.testing.assert_array_equal(kept.interpolation.decoded, second.interpolation.decoded)
    # What is there is not lost by asking for less.
    third = db.progressive_pictures(small_model, small_images, run)
    assert third.interpolation.depth == 7


def test_neither_batch_nor_session_can_change_a_picture(small_model, small_images, run, calls):
    options = {"pictures": "all", "depth": 3}
    memory = dataclasses.replace(run, folder=None)
    apart = db.progressive_pictures(small_model, small_images, memory, batch_size=5, **options)
    assert max(calls) == 5
    db.progressive_pictures(small_model, small_images, run)
    together = db.progressive_pictures(small_model, small_images, run, **options)
    for name in ("decoding", "generation", "interpolation"):
        one, other = getattr(apart, name), getattr(together, name)
        for field in dataclasses.fields(one):
            a, b = (np.asarray(getattr(of, field.name)) for of in (one, other))
            if a.dtype == np.uint8:
                # The network's rounding may move what lies between two levels.
                assert np.abs(a.astype(int) - b).max() <= 1
                assert (a != b).mean() < 0.01
            elif a.dtype == np.float64:
                np.testing.assert_allclose(a, b, rtol=1e-5)
            else:
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 10])
def test_a_chain_of_few_steps_shows_each_once(small_model, small_images, num_timesteps, tmp_path):
    model = small_model.respaced(num_timesteps)
    run = db.evaluate_nll(model, small_images, **PAIRS, out=tmp_path / "run")
    result = db.progressive_pictures(model, small_images, run, pictures="all")
    steps = list(result.decoding.t)
    assert steps == sorted(set(steps), reverse=True)
    assert (steps[0], steps[-1]) == (num_timesteps, 1)
    assert len(steps) == num_timesteps
    assert list(result.generation.t) == (steps[:-1] or [1])
    assert result.interpolation.depth == max(1, num_timesteps // 2)


def test_the_network_is_evaluated_and_left_as_it_was(small_model, small_images, run):
    modes = []
    network = small_model.network
    hook = network.register_forward_hook(lambda module, *_: modes.append(module.training))
    network.train()
    try:
        db.progressive_pictures(small_model, small_images, run)
        assert network.training
    finally:
        hook.remove()
        network.eval()
    assert modes
    assert not any(modes)


def test_memory_that_is_short_halves_the_batch(small_model, small_images, run, calls, monkeypatch):
    real, warnings = rate_distortion.progressive_decoding, []

    def short(passed, *arguments):
        if passed.batch_size > 20:
            raise MemoryError
        return real(passed, *arguments)

    monkeypatch.setattr(rate_distortion, "progressive_decoding", short)
    listener = RunListener(warn=warnings.append)
    db.progressive_pictures(small_model, small_images, run, listener=listener)
    assert warnings
    assert max(calls) <= 20
    assert sum(calls) == 66


# ---- from the folder


def test_pictures_of_another_run_are_refused(small_model, small_images, run, tmp_path):
    short = small_model.respaced(5)
    other = db.evaluate_nll(short, small_images, **PAIRS, out=tmp_path / "other")
    db.progressive_pictures(short, small_images, other)
    (run.folder / PICTURES).write_bytes((other.folder / PICTURES).read_bytes())
    for call in (
        lambda: db.write_report(run.folder),
        lambda: db.progressive_pictures(small_model, small_images, run),
    ):
        with pytest.raises(InputError, match=rf"{run.folder / PICTURES}: is that of another run"):
            call()


def test_a_stop_keeps_what_was_made(small_model, small_images, run, monkeypatch, calls):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rate_distortion, "interpolation", stop)
        with pytest.raises(KeyboardInterrupt):
            db.progressive_pictures(small_model, small_images, run, pictures="all")
    calls.clear()
    db.progressive_pictures(small_model, small_images, run, pictures="all")
    assert sum(calls) == 3 * 11 * 20


# ---- what does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pictures": "some"}, "`pictures=some`: choose none, decoding or all"),
        ({"depth": 3}, "`depth=3`: .*`pictures=all`"),
        ({"depth": 3, "pictures": "none"}, "`depth=3`: .*`pictures=all`"),
        ({"depth": 0, "pictures": "all"}, "`depth=0`: choose a timestep from 1 to 40"),
        ({"depth": 41, "pictures": "all"}, "`depth=41`: choose a timestep from 1 to 40"),
        ({"batch_size": 0}, "`batch_size=0`"),
    ],
)
def test_an_option_that_does_not_fit(small_model, small_images, run, options, message):
    with pytest.raises(InputError, match=message):
        db.progressive_pictures(small_model, small_images, run, **options)
    assert not (run.folder / PICTURES).exists()


def test_one_image_is_not_mixed(small_model, small_images):
    one = small_images.subset(1)
    run = db.evaluate_nll(small_model, one, **PAIRS)
    with pytest.raises(InputError, match="`pictures=all`: interpolation needs two images"):
        db.progressive_pictures(small_model, one, run, pictures="all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, images: (model, images.subset(5)), "image set"),
        (lambda model, images: (model.respaced(20), images), "number of steps"),
        (lambda model, images: (model.with_conventions(clip=False), images), "clip"),
        (
            lambda model, images: (model.with_conventions(variance="fixed_small"), images),
            "variance",
        ),
        (lambda model, images: (dataclasses.replace(model, sha256="1" * 64), images), "checkpoint"),
    ],
)
def test_what_the_run_was_not_made_with(small_model, small_images, run, change, message):
    with pytest.raises(InputError, match=f"the run has another {message}"):
        db.progressive_pictures(*change(small_model, small_images), run)
