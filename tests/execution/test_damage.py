"""Whatever happens to a file of a run folder: who reads it names it, or has the same numbers."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from damage import empty, remove, truncate
from run_folders import KINDS, assert_same_numbers, contents
from sealing import edit

import ddpmbench as db
from ddpmbench import checksums
from ddpmbench.evaluate.sample import load_samples
from ddpmbench.execution.finished_runs import read_environment
from ddpmbench.report.fid_figures import pictures_of
from ddpmbench.unet.unet import UNet

BESIDE = {
    **{"every-pair": "other", "importance": "importance", "corrected": "corrected"},
    "fid": "other-fid",
}
"""With which a run is compared."""
ALL = [*KINDS, "corrected"]


def flipping(share):
    """Turns one bit, so far behind the beginning."""

    def flip(path):
        content = bytearray(path.read_bytes())
        place = int(share * len(content))
        content[place] ^= 1 << place % 8
        path.write_bytes(content)

    return flip


DAMAGES = [*map(flipping, (0.4, 0.9)), truncate, empty, remove]
UNREAD = {"engine.json", "check.json", "check.csv", "terms.parquet"}
UNREAD |= {"report.html", "report.json"}
"""What only its own command reads; so are the shards, but for the terms and corrections of nll."""
OPTIONAL = {"environment.json", "extremes.npz", "nearest.npz", "pictures.npz", "run.json"}
OPTIONAL.add("influence.npz")
"""What a folder need not have for its numbers to be read."""
BY_HAND = {"extremes.npz", "extremes_of_second.npz", "proposal.csv"}
"""Files of score that its page and its next run read: see evaluate/test_score.py."""
NLL = ("every-pair", "importance", "corrected")


CALLS = {"corrected"}
"""Kinds that call the network for more than their shards: for the check, and pictures."""


@pytest.fixture(autouse=True)
def cache(runs, monkeypatch):
    """That of the runs, where the features of their reference are."""
    monkeypatch.setenv("DDPMBENCH_CACHE", str(runs.root / "cache"))
    monkeypatch.setattr("ddpmbench.execution.timing.LEAST_SECONDS", 0.0)


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


def readers(kind, folder, runs):
    """Everything that can be read of a folder of this kind, the numbers of its report first."""

    def comparison():
        compared = db.compare([runs[BESIDE[kind]].folder, folder])
        return compared.summary["runs"][0].get("differences"), getattr(compared, "per_timestep", 0)

    def pictures():
        found, pictures = db.load_report(folder), None
        if kind in NLL:
            pictures = {name: plain(draw.args) for name, draw in found._figures().items()}
        if kind == "fid":
            pictures = pictures_of(folder, found.summary["num_generated"])
        return read_environment(folder), pictures

    result = {"report": lambda: db.load_report(folder), "pictures": pictures}
    if kind in BESIDE:
        result["comparison"] = comparison
    if kind in NLL:
        result["curve"] = lambda: db.rate_distortion(folder).curve
    if kind in ("sample", "fid"):
        result["samples"] = lambda: load_samples(folder)
    return result


def read(kind, folder, runs):
    """What each reader says, None where it refuses; and the refusals, which name the folder."""
    answers, lines = {}, []
    for name, reader in readers(kind, folder, runs).items():
        try:
            answer = json.dumps(plain(reader()), default=str).replace(str(folder), "RUN")
        except db.InputError as error:
            answer = None
            lines.append(str(error))
        answers[name] = answer
    assert all(str(folder) in line and "\n" not in line for line in lines), lines
    return answers, lines


def files(folder):
    """All of them, but for those of runs within this one, which are of another kind."""
    paths = (*folder.iterdir(), *(folder / "shards").glob("*"))
    return sorted(path for path in paths if path.is_file())


def is_read(kind, path):
    """Whether somebody reads it but the command that made it."""
    if path.parent.name == "shards":
        return kind in NLL and path.name.startswith(("terms", "correction"))
    return path.name not in UNREAD and not (kind == "score" and path.name in BY_HAND)


@pytest.mark.parametrize("kind", ALL)
def test_who_reads_it_names_it_or_has_the_same_numbers(kind, runs, copied):
    folder = copied(kind)
    expected, refusals = read(kind, folder, runs)
    assert not refusals
    for path in files(folder):
        kept = path.read_bytes()
        for damage in DAMAGES:
            damage(path)
            found, lines = read(kind, folder, runs)
            path.write_bytes(kept)
            optional = damage is remove and path.name in OPTIONAL
            what = f"{path.name}: {damage.__name__}"
            for name, answer in found.items():
                fewer = {"pictures", "comparison"} if damage is remove else ()
                assert answer in (None, expected[name]) or name in fewer, f"{what}: {name}"
            if is_read(kind, path) and not optional:
                named = damage is remove or any(path.name in line for line in lines)
                assert lines, f"{what} is read without its checksum"
                assert named, what


@pytest.mark.parametrize("kind", sorted(set(ALL) - {"compare", "compare-fid", "speed"}))
def test_the_same_command_makes_all_of_it_right_again(kind, runs, copied, monkeypatch):
    folder, whole = copied(kind), runs[kind]
    for place in (folder, folder / "shards"):
        damaged = [path for path in files(folder) if path.parent == place]
        for k, path in enumerate(damaged):
            if path.name != "run.json":  # nobody can tell which run it was
                DAMAGES[k % len(DAMAGES)](path)
        with monkeypatch.context() as patch:
            if place == folder and kind not in CALLS:
                patch.setattr(UNet, "body", None)
            assert_same_numbers(runs.make(kind, folder), whole)
        assert_same_numbers(db.load_report(folder), whole)
        assert contents(folder).keys() >= contents(whole.folder).keys()
        assert read(kind, folder, runs)[1] == []
    for damage in DAMAGES[:-1]:
        kept = (folder / "run.json").read_bytes()
        damage(folder / "run.json")
        with pytest.raises(db.InputError, match=r"run\.json is damaged"):
            runs.make(kind, folder)
        (folder / "run.json").write_bytes(kept)


@pytest.mark.parametrize("name", ["a.json", "a.npz"])
def test_a_bit_of_every_byte_counts(tmp_path, name):
    path = tmp_path / name
    if name == "a.json":
        checksums.write_json(path, {"x": 1.5}, {"t.csv": "ab" * 32})
    else:
        checksums.write_npz(path, {"x": np.arange(3)})
    kept = path.read_bytes()
    for place in range(len(kept)):
        path.write_bytes(kept[:place] + bytes([kept[place] ^ 1 << place % 8]) + kept[place + 1 :])
        checksums._is_whole.cache_clear()  # as a process that begins then
        assert checksums.is_whole(path) is False, place


# ---- what is no finished run

SUMMARY = "summary.json"


def of_record(name, text):
    def make(folder, copied):
        folder.mkdir()
        (folder / name).write_text(text)

    return make


def of_another_command(folder, copied):
    folder.mkdir()
    checksums.write_json(folder / "summary.json", {"schema": "ddpmbench.inspect/1"}, {})


def pipe(folder, copied):
    folder.mkdir()
    os.mkfifo(folder / "summary.json")


def unfinished(folder, copied):
    copied("importance").rename(folder)
    (folder / "summary.json").unlink()


def of_a_later_version(folder, copied):
    copied("importance").rename(folder)
    edit(folder / "run.json", ddpmbench="0.10.0")
    # Its checksum may be elsewhere.
    (folder / SUMMARY).write_text((folder / SUMMARY).read_text() + " ")


def of_a_later_version_published(folder, copied):
    copied("importance").rename(folder)
    (folder / "run.json").unlink()
    versions = json.loads((folder / "environment.json").read_text())["versions"]
    edit(folder / "environment.json", versions={**versions, "ddpmbench": "7.0rc1"})


NO_RUN = {
    "nowhere": (lambda folder, copied: None, "is no run folder"),
    "empty": (lambda folder, copied: folder.mkdir(), "holds no run"),
    "file": (lambda folder, copied: folder.write_text("precious"), "is no run folder"),
    "unfinished": (unfinished, "unfinished"),
    "newer-schema": (of_record(SUMMARY, '{"schema": "ddpmbench.nll/12"}'), "upgrade ddpmbench"),
    "newer-version": (of_a_later_version, "ddpmbench 0.10.0"),
    "newer-published": (of_a_later_version_published, "ddpmbench 7.0rc1"),
    **{
        f"{kind}-{name}": (of_record(name, text), name if name == SUMMARY else "")
        for name in (SUMMARY, "run.json")
        for kind, text in {
            "deep": "[" * 100_000,
            "twice": '{"schema": "ddpmbench.nll/1", "schema": "ddpmbench.nll/1"}',
            "long": '{"schema": ' + "9" * 5000 + "}",
            "list": '{"schema": ["ddpmbench.nll/1"]}',
            "zero": "\x00",
        }.items()
    },
    "pipe": (pipe, SUMMARY),
    "other-kind": (of_another_command, "of inspect"),
}
READERS = {
    "load_report": lambda path, runs: db.load_report(path),
    "write_report": lambda path, runs: db.write_report(path),
    "rate_distortion": lambda path, runs: db.rate_distortion(path),
    "compare": lambda path, runs: db.compare([runs["importance"].folder, path]),
    "compare, first": lambda path, runs: db.compare([path, runs["importance"].folder]),
    "terms_of": lambda path, runs: db.evaluate_nll(runs.model, runs.images, terms_of=path),
    "samples": lambda path, runs: load_samples(path),
    "compress": lambda path, runs: db.compress(
        runs.model, runs.images, path.parent / "code", run=path
    ),
}


@pytest.mark.parametrize("kind", NO_RUN)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_run_is_one_line(kind, reader, runs, copied, tmp_path):
    folder, (make, words) = tmp_path / "there", NO_RUN[kind]
    make(folder, copied)
    with pytest.raises(db.InputError) as refused:
        READERS[reader](folder, runs)
    line = str(refused.value)
    assert str(folder) in line
    assert "\n" not in line
    assert words in line or reader == "samples"
