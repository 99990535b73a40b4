"""Averages in a weights file: read, refused or noted, and never passed over."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from peers import OPENAI_FLAGS, pesser_weights, refused, same_weights
from test_states import AVERAGED, LAST, SWAPPED, under
from unet_configs import SMALL_CONFIG

from ddpmbench import CheckpointSettings, InputError, evaluate_nll, load_checkpoint, load_images
from ddpmbench.checkpoints.weights import read_state
from ddpmbench.files import sha256_of
from ddpmbench.report.nll_text import printed_nll
from ddpmbench.unet.unet import UNet


def load(path, content, weights=None):
    torch.save(content, path)
    return load_checkpoint(path, CheckpointSettings(weights=weights, model_flags=OPENAI_FLAGS))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.ckpt"


@pytest.fixture(scope="module")
def last(tmp_path_factory):
    return load(tmp_path_factory.mktemp("last") / "raw.pt", LAST)


def test_an_average_equal_to_the_last_weights_is_still_one(path, last):
    read = load(path, {"last": {"net": LAST}, "copy": {"ema": LAST}})
    assert same_weights(read, last)
    assert "weights: EMA (copy/ema)" in read.notes


PARAMETERS = list(AVERAGED.values())
FLAT = torch.cat([weight.flatten() for weight in PARAMETERS])


@pytest.mark.parametrize(
    ("average", "where"),
    [
        ({"ema_params": [PARAMETERS]}, "ema_params/0"),
        ({"ema_params": tuple(PARAMETERS)}, "ema_params"),
        ({"ema": {"0.999": PARAMETERS, "0.9999": PARAMETERS}}, "ema/0.999"),
        ({"shadow_params": PARAMETERS}, "shadow_params"),
        ({"averaged_model": {"parameters": PARAMETERS}}, "averaged_model/parameters"),
        ({"opt": {"state": {}, "param_groups": [], "ema": PARAMETERS}}, "opt/ema"),
        ({"opt": {"state": {0: {"ema": FLAT}}, "param_groups": [{}]}}, "opt/state/0"),
        ({"state": {"deep": [[{"ema": [PARAMETERS]}]]}}, "state/deep/0/0/ema/0"),
        ({"ema_vector": FLAT}, "ema_vector"),
        ({"ema": [LAST["time_embed.0.weight"]]}, "ema"),  # a tensor that the weights share
        ({"ema": {name: AVERAGED[name] for name in list(AVERAGED)[20:22]}}, "ema"),
        ({"ema": {f"renamed_{name}": weight for name, weight in AVERAGED.items()}}, "ema"),
        ({"model_ema.time_embed.0.weight": AVERAGED["time_embed.0.weight"]}, "model_ema"),
    ],
)
def test_an_average_that_is_no_state_dict_is_refused_whatever_holds_it(average, where, path, last):
    content = {"model": LAST, **average}
    with refused(path, f"averaged weights ({where})", "`weights=raw`"):
        load(path, content)
    raw = load(path, content, "raw")
    assert same_weights(raw, last)
    assert any("not read" in note and where in note for note in raw.notes)


def test_moments_of_an_optimizer_are_no_average(path, last):
    moments = {"exp_avg": torch.ones(9, 9), "exp_avg_sq": torch.ones(9, 9)}
    content = {
        "model": LAST,
        "ema_optimizer": {"state": {0: moments}, "param_groups": [{}]},
        "loose": {"0": moments},
    }
    read = load(path, content)
    assert same_weights(read, last)
    assert not any("not read" in note for note in read.notes)


@pytest.mark.parametrize(
    ("others", "names"),
    [
        ({"discriminator": {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)}}, 1),
        ({"parameters": [torch.ones(2, 2)]}, 1),
        ({"d": [{"w": torch.ones(2, 2)}], "e": {"f": {"w": torch.ones(2, 2)}}}, 2),
        ({f"net{i}": {"w": torch.ones(2, 2)} for i in range(5)}, 5),
    ],
)
def test_other_networks_in_the_file_are_a_note(others, names, path):
    (note,) = [n for n in load(path, {"model": LAST, **others}).notes if "not read" in n]
    assert next(iter(others)) in note
    assert note.count(",") + 1 == min(names, 3)
    assert ("and 2 more" in note) == (names == 5)
    beside = {"state_dict": {**under("model.", LAST), "critic.weight": torch.ones(2, 2)}}
    (note,) = [n for n in load(path, beside).notes if "not read" in n]
    assert note.endswith("state_dict/critic")


def test_weights_alone_leave_nothing_unread(path):
    whole = {"model": LAST, "losses": torch.ones(100), "rng": torch.zeros(9, dtype=torch.uint8)}
    for content in (LAST, whole, {**whole, "ema": AVERAGED}, SWAPPED):
        assert not any("not read" in note for note in load(path, content).notes)


def test_several_lists_of_averages_are_a_choice_that_is_made_by_saving_one(path):
    content = {"model": LAST, "ema": [AVERAGED, {n: 2 * w for n, w in AVERAGED.items()}]}
    with refused(path, "several sets of averaged weights (ema/0, ema/1)", "torch.save"):
        load(path, content)
    load(path, content["ema"][0])


# ---- numbers of NumPy


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_numbers_of_numpy_are_read(module, path, last):
    said = {
        "best": np.float64(3.2),
        "steps": np.int64(7),
        "done": np.bool_(True),
        "name": np.str_("abc"),
        "rows": np.arange(6, dtype=">i4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "nothing": np.zeros((0, 3)),
        "type": np.float32,
        "dtype": np.dtype("f4"),
    }
    torch.save({"model": LAST, **said}, path, _use_new_zipfile_serialization=False)
    here = b"numpy._core" if int(np.__version__[0]) > 1 else b"numpy.core"
    path.write_bytes(path.read_bytes().replace(here, module.encode()))
    state = read_state(path)
    for name in ("best", "steps", "done", "name", "type"):
        assert (type(state[name]), state[name]) == (type(said[name]), said[name])
    for name in ("rows", "columns", "nothing"):
        np.testing.assert_array_equal(state[name], said[name])
        assert state[name].dtype == said[name].dtype.newbyteorder("=")
    assert same_weights(load_checkpoint(path, CheckpointSettings(model_flags=OPENAI_FLAGS)), last)


class Call:
    """Pickled as a call of something with arguments, and a state that is given to the result."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


RECONSTRUCT, SCALAR = np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0]
F8 = np.dtype("f8")
NO_FLAGS = (3, "|", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    "made",
    [
        np.array([os.getcwd], dtype=object),
        np.array([print, {}], dtype=object),
        np.zeros(2, dtype=[("a", "O"), ("b", "f8")]),
        Call(SCALAR, Call(np.dtype, "O8", False, True, state=NO_FLAGS), b"A" * 8),
        Call(SCALAR, Call(np.dtype, "f8", False, True, state=NO_FLAGS), b"A" * 4),
        Call(RECONSTRUCT, np.ndarray, (10**15,), b"O", state=(1, (10**15,), F8, 0, b"")),
        Call(SCALAR, F8, b"A" * 16),
        Call(SCALAR, Call(np.dtype, "f16", False, True, state=NO_FLAGS), b"A" * 16),
        Call(RECONSTRUCT, dict, (0,), b"b"),
        Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1, -8), F8, 0, b"A" * 64)),
        Call(np.ndarray, (9,), "O"),
        Call(np.dtype, "O"),
        Call(np.frombuffer, b"A" * 8),
        Call(np.load, "x.npy"),
        Call(bytes, 10**15),
        np.datetime64("2020-01-01"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("old", [True, False])
def test_an_array_of_anything_but_numbers_is_refused(made, old, path):
    torch.save({"extra": made}, path, _use_new_zipfile_serialization=not old)
    with refused(path):
        load_checkpoint(path, CheckpointSettings(model_flags=OPENAI_FLAGS))
    path.write_bytes(pickle.dumps({"a": made}, 2))
    with refused(path):
        load_checkpoint(path, CheckpointSettings(model_flags=OPENAI_FLAGS))


# ---- depth


def test_dicts_that_hold_themselves_or_lie_too_deep(path):
    cyclic = {"a": {}, "b": []}
    cyclic["a"]["self"] = cyclic["b"]
    cyclic["b"] += [cyclic["a"], cyclic["b"]]
    with refused(path, "holds no weights with names"):
        load(path, cyclic)
    with zipfile.ZipFile(path, "w") as archive:  # as torch.save writes it
        archive.writestr("last/data.pkl", _chain(20_000))
        archive.writestr("last/version", "3")
    with refused(path, "deep", "torch.save(model.state_dict(), PATH)"):
        load_checkpoint(path, CheckpointSettings(model_flags=OPENAI_FLAGS))


def _chain(depth):
    """A pickle of a dict in a dict in a dict ...; `pickle.dumps` itself cannot go so deep."""
    return b"\x80\x02" + b"}U\x01d" * depth + b"}" + b"s" * depth + b"."


ZEROS = {name: torch.zeros_like(weight) for name, weight in LAST.items()}


@pytest.mark.parametrize(
    ("average", "words"),
    [({**LAST, next(iter(LAST)): torch.zeros(3)}, ""), (ZEROS, "all weights are zero")],
)
def test_an_average_that_cannot_be_read_names_the_last_weights(average, words, path, last):
    with refused(path, words, "`weights=raw`"):
        load(path, {"model": LAST, "ema": average})
    assert same_weights(load(path, {"model": LAST, "ema": average}, "raw"), last)
    with refused(path, words):
        load(path, average)


def test_which_weights_were_read_stands_with_the_result(small_npz, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = pesser_weights(UNet(SMALL_CONFIG))
    averaged, path = {name: 0.5 * weight for name, weight in last.items()}, tmp_path / "t.ckpt"
    torch.save({"model": last, "ema": averaged}, path)
    images, bits = load_images(small_npz, num_images=2), set()
    for kind, weights, where in (("ema", None, "EMA (ema)"), ("raw", "raw", "raw (model)")):
        said = {"schedule": "linear:21:0.001:0.2", "variance": "fixed_small", "weights": weights}
        read = load_checkpoint(path, CheckpointSettings(**said))
        assert f"weights: {where}" in read.notes
        out = tmp_path / kind
        report = evaluate_nll(read, images, estimator="every-pair", draws=1, out=out)
        assert f"(pesser, {kind}, " in printed_nll(report.summary, "table")
        record = report.summary["checkpoint"]
        assert record["files"] == [path.name]
        assert record["sha256"] == sha256_of(path)
        assert (record["weights"], f"({record['where']})") == (kind, where.split()[1])
        bits.add(report.summary["bits_per_dim"])
    assert len(bits) == 2
    with pytest.raises(InputError, match=f"{tmp_path / 'ema'}.*another run"):
        evaluate_nll(read, images, estimator="every-pair", draws=1, out=tmp_path / "ema")
