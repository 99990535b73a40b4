"""What is written for the Hugging Face hub, read back by the hub's own package."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, parse_eval_result_entries
from sealing import write_text

import ddpmbench as db
from ddpmbench.report.nll_text import eval_results, model_index_result, write_hugging_face

RESULTS = Path(__file__).parents[2] / "results"
ENTRIES, INDEX = "huggingface/.eval_results/ddpmbench.yaml", "huggingface/model-index.yaml"
HUB = {"fashion-mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}


@pytest.fixture(params=["default", "every-pair"])
def folder(request, tmp_path):
    """A published result; it has no run.json."""
    without = shutil.ignore_patterns("huggingface")
    return Path(shutil.copytree(RESULTS / request.param, tmp_path / request.param, ignore=without))


def version_of(folder):
    return json.loads((folder / "environment.json").read_text())["versions"]["ddpmbench"]


def summary_of(folder, **changes):
    summary = json.loads((folder / "summary.json").read_text())
    return {n: {**v, **changes[n]} if n in changes else v for n, v in summary.items()}


def read_entries(folder):
    return parse_eval_result_entries(yaml.safe_load((folder / ENTRIES).read_text()))


def read_card(folder):
    return ModelCard(f"---\n{(folder / INDEX).read_text()}---\n\nA model.\n").data


def test_the_entry_comes_back_as_it_was(folder):
    summary = summary_of(folder)
    assert set(write_hugging_face(folder, summary)) == {folder / ENTRIES, folder / INDEX}
    (entry,) = read_entries(folder)
    assert [entry] == eval_results(summary, version=version_of(folder))
    assert entry == EvalResultEntry(
        dataset_id="zalando-datasets/fashion_mnist",
        task_id="bits_per_dim_test",
        value=summary["bits_per_dim"],
        notes=entry.notes,
    )


def test_the_model_index_comes_back_as_it_was(folder):
    summary = summary_of(folder)
    write_hugging_face(folder, summary)
    card = read_card(folder)
    assert card.model_name == "default"
    (result,) = card.eval_results
    assert result == model_index_result(summary, version=version_of(folder))
    assert result.metric_value == summary["bits_per_dim"]
    assert result.task_type == "unconditional-image-generation"
    assert (result.dataset_type, result.dataset_split) == (HUB["fashion-mnist"], "test")
    # Only the hub itself says so.
    assert result.verified is result.verify_token is None


def test_what_makes_it_comparable_is_in_both(folder):
    summary = summary_of(folder)
    write_hugging_face(folder, summary)
    (entry,), (result,) = read_entries(folder), read_card(folder).eval_results
    conventions = {n: v for n, v in summary["conventions"].items() if v is not None}
    amount = {n: v for n, v in summary["sampling"].items() if n in ("draws", "num_replicates")}
    expected = {
        "half_width": summary["half_width"],
        "half_width_population": summary["half_width_population"],
        "num_images": summary["num_images"],
        "split": "test",
        "num_timesteps": 1000,
        **conventions,
        "estimator": summary["estimator"],
        **amount,
        "seed": 0,
        "data_sha256": summary["data"]["sha256"],
        "checkpoint_sha256": summary["checkpoint"]["sha256"],
        "ddpmbench": version_of(folder),
    }
    assert len(amount) == 1
    named = {"prediction", "variance", "clip", "decoder", "schedule", "time_input"}
    assert named <= set(conventions)
    facts = f", {entry.notes.split('; ')[1]}, "
    for name, value in expected.items():
        assert result.metric_args[name] == value
        assert f", {name}={value}, " in facts
    assert "upper bound" in entry.notes
    assert result.dataset_args["sha256"] == summary["data"]["sha256"]


def test_splits_are_tasks_of_their_own():
    for name, split in itertools.product(HUB, ["train", "test"]):
        summary = summary_of(RESULTS / "default", data={"source": name, "split": split})
        (entry,) = eval_results(summary, version=None)
        assert (entry.dataset_id, entry.task_id) == (HUB[name], f"bits_per_dim_{split}")
        assert "ddpmbench=" not in entry.notes


@pytest.mark.parametrize("source", ["secret/place/cats.npz", "cifar10", "fashion-mnist"])
def test_a_file_is_no_data_set_of_the_hub(folder, source):
    # A folder may be called as a data set is; it has no split.
    summary = summary_of(folder, data={"source": source, "split": None})
    assert write_hugging_face(folder, summary) == [folder / INDEX]
    assert not (folder / ENTRIES).exists()
    (result,) = read_card(folder).eval_results
    assert result.dataset_type == "local"
    assert result.dataset_name == Path(source).name
    assert result.dataset_split is None
    assert result.dataset_args["sha256"] == summary["data"]["sha256"]
    assert "secret" not in (folder / INDEX).read_text()


def test_what_is_unknown_is_left_out(folder):
    summary = summary_of(folder) | {"half_width": None}
    write_hugging_face(folder, summary)
    (entry,), (result,) = read_entries(folder), read_card(folder).eval_results
    assert "half_width" not in result.metric_args
    assert "half_width=" not in entry.notes
    assert "None" not in entry.notes


def test_a_conditional_model_has_another_task(folder):
    summary = summary_of(folder, conventions={"labels": "class 3"})
    result = model_index_result(summary, version=None)
    assert result.task_type == "other"
    assert result.metric_args["labels"] == "class 3"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("google/ddpm-cifar10-32", "ddpm-cifar10-32"),
        ("/home/me/runs/ema_0.9999_500000.pt", "ema_0.9999_500000.pt"),
    ],
)
def test_a_model_is_called_as_its_file(folder, source, name):
    write_hugging_face(folder, summary_of(folder, checkpoint={"source": source}))
    assert read_card(folder).model_name == name
    assert "/home" not in (folder / INDEX).read_text()


@pytest.mark.parametrize("kind", ["importance", "every-pair"])
def test_a_run_says_which_version_made_it(copied, kind):
    report = db.load_report(copied(kind))
    # As if an older one had.
    path = report.folder / "run.json"
    write_text(path, path.read_text().replace(f'"{db.__version__}"', '"0.0.7"'))
    assert write_hugging_face(report.folder, report.summary) == [report.folder / INDEX]
    (result,) = read_card(report.folder).eval_results
    assert result.metric_args["ddpmbench"] == "0.0.7"
    assert not list(report.folder.rglob("*.tmp"))
