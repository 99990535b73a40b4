"""A finished run that is asked for once more is answered from its folder."""

import dataclasses
import shutil
from collections import Counter

import pytest
from damage import flip, remove

import ddpmbench as db
from ddpmbench.checksums import read_json
from ddpmbench.evaluate import page
from ddpmbench.execution import folder as provenance
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.importance import Importance

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sketched")]


@pytest.fixture(autouse=True)
def done(monkeypatch):
    """Counts what is made; the source counts as committed, as that of an installed package."""
    for module in (provenance, page):
        monkeypatch.setattr(module, "source_revision", lambda: None)
    counts = Counter()

    def count(place, name):
        function = getattr(place, name)

        def call(*given, **options):
            counts[name] += 1
            return function(*given, **options)

        monkeypatch.setattr(place, name, call)

    count(Engine, "model_output")
    count(Importance, "run")
    count(page, "_drawn_figures")
    return counts


@pytest.fixture(scope="module")
def first(small_checkpoint, small_npz, tmp_path_factory):
    """Where the first answers are kept, by command."""
    return tmp_path_factory.mktemp("first")


@pytest.fixture
def asked(first, small_checkpoint, small_npz, completed, done, drawn, tmp_path, monkeypatch):
    """Asks with a command; the first answer, with its page, is computed once and copied."""
    given = ("--ckpt", small_checkpoint, "--data", small_npz, "--half-width", 5)

    def ask(command, out, *options):
        printed, message = completed(command, *given, *options, "--out", out)
        return printed, message.replace(str(out), "OUT")

    def both(command="nll"):
        kept, out = first / command, tmp_path / command
        if not kept.exists():
            with monkeypatch.context() as patch:
                patch.setattr(page, "page_of", drawn)
                (first / f"{command}.txt").write_text(ask(command, kept)[0])
        shutil.copytree(kept, out)
        done.clear()
        return out, (first / f"{command}.txt").read_text(), lambda *of: ask(command, out, *of)

    return both


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("command", ["nll", "rd"])
def test_nothing_is_made_again(command, asked, done):
    out, printed, ask = asked(command)
    before = contents(out)
    again, message = ask()
    assert again == printed
    assert not done
    assert contents(out) == before
    assert "Run folder: OUT\n" in message
    assert message.endswith("Report: OUT/report.html\n")
    assert "report.html" not in printed
    assert before["report.html"].count(b"worse than sending raw pixels") == 1
    # How it is printed, and what is not passed to the run, does not matter.
    assert ask("--format", "json")[0] != printed
    assert not done


def test_a_single_file_that_is_damaged_or_missing_is_made_again(
    small_model, small_images, done, tmp_path
):
    """Each alone: beside another that is seen, it would be made again in any case."""
    out, few = tmp_path / "run", small_model.respaced(8)
    given = {"half_width": 5.0, "out": out, "progress": False}
    printed = db.evaluate_nll(few, small_images, **given).summary["bits_per_dim"]
    before = contents(out)
    names = sorted(before.keys() - {"run.json", "engine.json"})  # which run it is, and by which way
    for k, name in enumerate(names):
        done.clear()
        if k % 2:
            flip(out / name)
        else:
            (out / name).unlink()
        result = db.evaluate_nll(few, small_images, **given)
        assert result.summary["bits_per_dim"] == pytest.approx(printed, rel=1e-6)
        assert done["run"] == 1, name
        assert bool(done["model_output"]) == name.startswith("shards"), name
        assert contents(out).keys() == before.keys(), name
    done.clear()
    db.evaluate_nll(few, small_images, **given)
    assert not done


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("name", ["report.html", "report.json", "figures/bound.svg"])
def test_a_damaged_or_missing_page_is_drawn_again(name, asked, done):
    out, printed, ask = asked()
    before = contents(out)
    harm = flip if name == "report.html" else remove
    harm(out / name)
    assert ask()[0] == printed
    assert done == {"_drawn_figures": 1}
    assert contents(out) == before


OTHERS = {
    "wider": {"half_width": 9.0},
    "narrower": {"half_width": 0.5},
    "capped": {"max_evaluations": 10**6},
    "checked": {"check": True},
    "batch": {"batch_size": 16},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_question_has_its_own_answer(other, asked, done, small_checkpoint, small_npz):
    out, _, _ = asked()
    given = {"half_width": 5.0, "out": out, "progress": False} | OTHERS[other]
    model = db.load_checkpoint(str(small_checkpoint))
    result = db.evaluate_nll(model, str(small_npz), **given)
    assert done["run"] == 1
    again = db.evaluate_nll(model, str(small_npz), **given)
    assert done["run"] == 1
    assert again.summary == result.summary
    alone = db.evaluate_nll(model, str(small_npz), **(given | {"out": None}))
    assert again.summary["bits_per_dim"] == pytest.approx(alone.summary["bits_per_dim"], rel=1e-6)
    assert again.summary["num_evaluations"] == alone.summary["num_evaluations"]
    assert again.summary["check"] == alone.summary["check"]


def test_a_narrower_result_comes_back_without_evaluations(asked, done):
    out, wide, ask = asked()
    narrow = ["--half-width", 0.7 * read_json(out / "summary.json")["half_width"]]
    printed, _ = ask(*narrow)
    assert ask()[0] == wide != printed
    done.clear()
    assert ask(*narrow)[0] == printed
    assert done["model_output"] == 0


@pytest.mark.parametrize(
    "given", [{"estimator": "every-pair"}, {"precision": "bf16", "half_width": 5.0}]
)
def test_the_report_read_back_is_the_one_computed(small_model, small_images, done, tmp_path, given):
    first, again = (
        db.evaluate_nll(small_model, small_images, **given, out=tmp_path, progress=False)
        for _ in range(2)
    )
    assert done["run"] == ("half_width" in given)
    assert again.summary == first.summary
    for name in ("per_timestep", "rate_distortion", "conventions", "sub_schedules", "per_image"):
        assert getattr(again, name).equals(getattr(first, name)), name


def test_the_same_pixels_under_other_names_are_named_anew(small_model, small_images, tmp_path):
    given = {"half_width": 5.0, "out": tmp_path / "run", "progress": False}
    db.evaluate_nll(small_model, small_images, **given)
    renamed = dataclasses.replace(small_images, ids=list("abcdef"))
    result = db.evaluate_nll(small_model, renamed, **given)
    assert list(result.per_image.image_id) == list("abcdef")
    moved = dataclasses.replace(renamed, source="elsewhere")
    assert db.evaluate_nll(small_model, moved, **given).summary["data"]["source"] == "elsewhere"


@pytest.mark.parametrize("changed", ["source", "versions"])
def test_another_source_or_package_computes_it_again(changed, asked, done, monkeypatch):
    _, _, ask = asked()
    if changed == "source":
        monkeypatch.setattr(provenance, "source_revision", lambda: "0123+")
    else:
        monkeypatch.setattr(provenance, "versions", lambda: {"numpy": "0"})
    ask()
    assert done["run"] == 1
