"""One bit of a run folder changes: it is named by whoever reads it, or changes no number."""

import functools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from feature_networks import write_network

import ddpmbench as db
from ddpmbench import checksums
from ddpmbench.evaluate.sample import load_samples
from ddpmbench.execution import worker
from ddpmbench.execution.finished_runs import read_environment
from ddpmbench.metrics.scores import PROTOCOLS
from ddpmbench.report.fid_figures import pictures_of

FLIPS = {"importance": 1, "pairs": 4, "sample": 4, "fid": 4}
"""Of each file, at random places; to read a folder of an importance sample takes longest."""
DRAWN = {"figures", "report.html", "huggingface"}
TIMES = ["seconds", "images_per_second"]
# Other rows may share their network calls.
same = functools.partial(pd.testing.assert_frame_equal, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPMBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def commands(small_model, small_images, tmp_path_factory):
    """What makes each kind of folder, or goes on with it."""
    network = write_network(
        tmp_path_factory.mktemp("network") / "stand-in.pt", num_features=6, num_classes=4
    )
    features = db.load_feature_network(network, resize="clean", device=torch.device("cpu"))

    def pairs(out):
        return db.evaluate_nll(small_model, small_images, estimator="every-pair", out=out)

    def importance(out):
        report = db.evaluate_nll(
            small_model, small_images, half_width=5.0, precision="bf16", check=True, out=out
        )
        db.progressive_pictures(small_model, small_images, report)
        return report

    def sample(out):
        return db.generate_samples(small_model, 8, out=out)

    def fid(out):
        settings = db.FidSettings(features, PROTOCOLS["clean"], 8)
        return db.evaluate_fid(small_model, [small_images], settings, out=out)

    return {"pairs": pairs, "importance": importance, "sample": sample, "fid": fid}


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "SHARD_BYTES", 150 * 88)
        for name, command in commands.items():
            command(root / name)
    return root


@pytest.fixture(params=["pairs", "importance", "sample", "fid"])
def run(request, whole, tmp_path):
    """A copy of one of them."""
    return shutil.copytree(whole / request.param, tmp_path / request.param)


def files(folder):
    """All that a number may be read from."""
    result = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in result if not DRAWN & set(path.relative_to(folder).parts)]


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << random.Random(place).randrange(8)
    path.write_bytes(content)


def places(path):
    size = path.stat().st_size
    kind = next(name for name in path.parts[::-1] if name in FLIPS)
    return random.Random(path.name).choices(range(size), k=FLIPS[kind])


def plain(value):
    """As something that compares by what is in it."""
    if isinstance(value, pd.DataFrame):
        return value.to_csv(index=False)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [plain(of) for of in value]
    if hasattr(value, "__dict__") and not isinstance(value, Path):
        return plain(vars(value))
    return value


def read(folder, beside):
    """Everything that can be read of a folder; what refuses says so, with the file's name."""

    def report():
        found = db.load_report(folder)
        return found, read_environment(folder), run_pictures(found)

    def run_pictures(found):
        if folder.name == "fid":
            return pictures_of(folder, found.summary["num_generated"])
        return {name: plain(draw.args) for name, draw in found._figures().items()}

    readers = {
        "sample": [lambda: load_samples(folder)],
        "fid": [
            report,
            lambda: load_samples(folder),
            lambda: db.compare([beside, folder]).summary["runs"][0]["differences"],
        ],
    }.get(
        folder.name,
        [
            report,
            lambda: db.rate_distortion(folder).curve,
            lambda: db.compare([beside, folder]).per_timestep.drop(columns="run"),
        ],
    )
    answers, refusals = [], []
    for reader in readers:
        try:
            answers.append(plain(reader()))
        except db.InputError as error:
            refusals.append(str(error))
            answers.append(None)
    assert all(str(folder) in line and "\n" not in line for line in refusals), refusals
    return answers


def without_source(answers, folder):
    return json.loads(json.dumps(answers, default=str).replace(str(folder), "RUN"))


def test_whoever_reads_it_names_it_or_has_the_same_numbers(run, whole):
    expected = without_source(read(run, whole / run.name), run)
    assert None not in expected
    for path in files(run):
        kept, refused = path.read_bytes(), 0
        for place in places(path):
            flip(path, place)
            result = without_source(read(run, whole / run.name), run)
            for answer, right in zip(result, expected, strict=True):
                assert answer in (None, right), f"{path.name}: {place}"
            refused += None in result
            path.write_bytes(kept)
        caches = {"engine.json", "check.json", "check.csv", "terms.parquet"}
        if run.name == "sample":
            caches.add("environment.json")
        of_the_run_alone = path.name in caches or path.name.startswith(("samples-", "features-"))
        if not of_the_run_alone and not path.name.startswith("pilot"):
            assert refused == len(places(path)), f"{path.name} is read without its checksum"


def test_the_same_command_makes_all_of_it_right_again(run, whole, commands):
    for path in files(run):
        if path.name == "run.json":
            continue  # nobody can tell which run it was
        flip(path, places(path)[-1])
    commands[run.name](run)
    results = [path for path in files(run) if path.parent.name != "shards"]
    assert [p.name for p in results] == [
        p.name for p in files(whole / run.name) if p.parent.name != "shards"
    ]
    for path in results:
        there = whole / run.name / path.relative_to(run)
        if path.suffix == ".json" and path.name not in ("environment.json", "engine.json"):
            here, right = checksums.read_json(path), checksums.read_json(there)
            for record in (here, right):
                record.pop(checksums.CHECKSUMS)
            same(
                *(
                    pd.json_normalize(of).drop(columns=TIMES, errors="ignore")
                    for of in (here, right)
                )
            )
        elif path.suffix == ".csv":
            same(pd.read_csv(path), pd.read_csv(there))
        elif path.suffix == ".parquet":
            same(pd.read_parquet(path), pd.read_parquet(there))
        assert checksums.is_whole(path) is True or path.suffix in (".csv", ".parquet")


def test_a_damaged_identity_is_refused(run, commands):
    for place in places(run / "run.json"):
        kept = (run / "run.json").read_bytes()
        flip(run / "run.json", place)
        with pytest.raises(db.InputError, match=r"run\.json is damaged"):
            commands[run.name](run)
        (run / "run.json").write_bytes(kept)


@pytest.mark.parametrize("name", ["a.json", "a.npz"])
def test_a_bit_of_every_byte_counts(tmp_path, name):
    path = tmp_path / name
    if name == "a.json":
        checksums.write_json(path, {"x": 1.5}, {"t.csv": "ab" * 32})
    else:
        checksums.write_npz(path, {"x": np.arange(3)})
    kept = path.read_bytes()
    for place in range(len(kept)):
        flip(path, place)
        checksums._is_whole.cache_clear()  # as a process that begins then
        assert checksums.is_whole(path) is False, place
        path.write_bytes(kept)
