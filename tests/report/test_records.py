"""Records of a folder: one that was changed, or lacks a field, is refused in one line."""

import json
from functools import partial
from pathlib import Path

import pytest
from run_folders import KINDS
from sealing import edit, read_record, write_record

import ddpmbench as db
from ddpmbench import checksums
from ddpmbench.evaluate import page
from ddpmbench.evaluate.sample import load_samples
from ddpmbench.report.stored import PageReport

RESULTS = Path(__file__).parents[2] / "results"
NEEDED = {"schema", "conventions", "checkpoint", "num_images", "data", "seed", "protocol", "calls"}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M 0 0 L 9 9"/></svg>'


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """Pages are written, and their figures are not drawn."""

    monkeypatch.setattr(
        page, "_drawn_figures", lambda figures, *_, **__: dict.fromkeys(figures, SVG)
    )


def shown(folder):
    """All that a report shows."""
    report = db.load_report(folder)
    texts = repr(report) + report._repr_html_()
    return db.write_report(folder, progress=False) if isinstance(report, PageReport) else texts


def line_of(call, folder):
    """What a call refuses with; None where it refuses nothing."""
    try:
        call(folder)
    except db.InputError as error:
        line = str(error)
    else:
        return None
    assert str(folder) in line
    assert "\n" not in line
    return line


def lacking(folder):
    """Each field of a summary, while the summary lacks it."""
    path = folder / "summary.json"
    whole = read_record(path)
    for field in whole:
        write_record(path, {name: value for name, value in whole.items() if name != field})
        yield field
    write_record(path, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_that_lacks_a_field_is_shown_without_it_or_is_one_line(runs, kind, tmp_path):
    folder = runs.copied(kind, tmp_path)
    fields, refused = set(), set()
    for field in lacking(folder):
        fields.add(field)
        if line := line_of(shown, folder):
            assert "damaged" in line
            refused.add(field)
    assert refused >= NEEDED & fields - ({"seed", "conventions"} if "compare" in kind else set())
    assert line_of(shown, folder) is None


COMPARED = (
    lambda run, runs, kind: db.compare([runs[kind].folder, run]),
    lambda run, runs, kind: db.compare([run, runs[kind].folder]),
)
BOUNDS = (*COMPARED, lambda run, runs, kind: db.rate_distortion(run))
READERS = {
    "every-pair": BOUNDS,
    "importance": (
        *BOUNDS,
        lambda run, runs, kind: db.evaluate_nll(runs.model, runs.images, terms_of=run),
    ),
    "fid": (*COMPARED, lambda run, runs, kind: load_samples(run)),
    "sample": (lambda run, runs, kind: load_samples(run),),
    "score": (lambda run, runs, kind: db.score_images(runs.model, runs.images, terms_of=run),),
}


@pytest.mark.parametrize("kind", READERS)
def test_so_it_is_where_another_command_reads_it(runs, kind, tmp_path):
    folder = runs.copied(kind, tmp_path)
    for read in READERS[kind]:
        reader = partial(read, runs=runs, kind=kind)
        lines = {field: line_of(reader, folder) for field in lacking(folder)}
        assert lines["schema"]
        assert not all(lines.values())


def test_a_mistake_in_drawing_is_not_called_a_damaged_summary(runs, monkeypatch, tmp_path):
    def figures(*_, **__):
        raise KeyError("color")

    monkeypatch.setattr(page, "_drawn_figures", figures)
    with pytest.raises(KeyError, match="color"):
        db.write_report(runs.copied("importance", tmp_path))


@pytest.mark.parametrize("kind", ["importance", "sample", "fid"])
def test_a_folder_of_a_version_without_checksums_is_called_that(runs, kind, tmp_path):
    folder = runs.copied(kind, tmp_path)
    for path in (folder / "run.json", folder / "summary.json"):
        path.write_text(json.dumps(read_record(path)))
    for _ in ("a run", "published without its run.json"):
        line = line_of(db.load_report, folder)
        assert "no checksum: of an earlier version, or changed by hand" in line
        assert "into a new folder" in line
        (folder / "run.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["summary.json", "environment.json"])
@pytest.mark.parametrize("kind", ["importance", "fid", "likelihoods"])
def test_what_is_changed_by_hand_is_one_line(runs, kind, name, tmp_path):
    path = runs.copied(kind, tmp_path) / name
    text = path.read_text()
    unsealed = read_record(path)
    for changed in (
        text.replace('"cpu', '"my cpu'),
        json.dumps(unsealed),
        json.dumps({**unsealed, "checksums": {}}),
        text + " ",
        "[]",
    ):
        path.write_text(changed)
        assert name in line_of(db.write_report, path.parent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "bf16"}, "precision_correction: does not belong to bf16"),
        ({"precision_correction": {"bits_per_dim": 0.1}}, "does not belong to fp32"),
        ({"estimator": "rotated-warp"}, "estimator: rotated-warp is unknown"),
    ],
)
def test_what_does_not_go_together_is_named(runs, changes, words, tmp_path):
    folder = runs.copied("importance", tmp_path)
    edit(folder / "summary.json", **changes)
    for call in (db.load_report, db.rate_distortion, lambda run: db.compare([run, RESULTS])):
        assert words in line_of(call, folder)


def test_a_comparison_of_fid_begins_with_fid(runs, tmp_path):
    folder = runs.copied("compare-fid", tmp_path)
    (run,) = read_record(folder / "summary.json")["runs"]
    edit(folder / "summary.json", runs=[{**run, "differences": run["differences"][1:]}])
    assert "summary.json" in line_of(db.load_report, folder)


def test_published_folders_hold_what_was_written():
    summaries = list(RESULTS.rglob("summary.json"))
    assert len(summaries) > 10
    for path in summaries:
        known = checksums.read_json(path)[checksums.CHECKSUMS]
        for other in path.parent.iterdir():
            if other.suffix in (".json", ".npz"):
                assert checksums.is_whole(other), other
            elif other.name in known:
                assert checksums.checksum(other) == known[other.name], other
