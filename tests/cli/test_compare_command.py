"""`ddpmbench compare` as a user types it, and what it refuses."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from damage import remove, truncate
from sealing import edit_npz, read_record
from unet_configs import TINY_CONFIG

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.diffusion.parameterization import Process, Variance
from ddpmbench.report.compare_nll import printed_comparison
from ddpmbench.train.loop import train
from ddpmbench.train.recipe import TrainingRecipe

pytestmark = pytest.mark.usefixtures("sketched")

# ---- two checkpoints of one training run


@pytest.fixture(scope="module")
def trained(small_images, tmp_path_factory):
    """Crops in a file, and checkpoints after 30 and 45 steps."""
    root = tmp_path_factory.mktemp("trained")
    whole = db.load_images("fashion-mnist:test", num_images=300)
    pixels = np.ascontiguousarray(whole.pixels[:, :, 6:22:2, 6:22:2])
    crops = dataclasses.replace(whole, pixels=pixels, source="crops", split=None)
    np.savez(root / "crops.npz", arr_0=pixels.transpose(0, 2, 3, 1))
    network = dataclasses.replace(TINY_CONFIG, attention=(False, False))
    recipe = TrainingRecipe(
        network=network,
        image_size=8,
        num_timesteps=50,
        variance=Variance.FIXED_LARGE,
        batch_size=32,
        learning_rate=3e-3,
        warmup_steps=5,
        ema_decay=0.95,
    )
    for steps in (30, 45):
        path = train(recipe, crops, root / "run", steps=steps, device=torch.device("cpu"))
        shutil.copy(path, root / f"{steps}.safetensors")
    return root


@pytest.fixture(scope="module")
def compared(trained):
    """Runs of both, the second on rows of the first's and on rows of its own."""
    common = ["nll", "--data", trained / "crops.npz", "--half-width", "0.1"]
    for name, steps, more in (
        ("a", 30, []),
        ("b", 45, ["--terms-of", trained / "a"]),
        ("own", 45, []),
    ):
        checkpoint = trained / f"{steps}.safetensors"
        arguments = [*common, "--ckpt", checkpoint, "--out", trained / name, *more]
        assert run([str(argument) for argument in arguments]) == 0
    return trained


@pytest.mark.slow
def test_the_paired_interval_is_three_times_narrower(compared, completed):
    _, message = completed(
        "compare", compared / "a", compared / "b", compared / "own", "--out", compared / "out"
    )
    summary = read_record(compared / "out" / "summary.json")
    on_same_rows, on_own_rows = summary["runs"]
    own = [json.loads((compared / name / "summary.json").read_text()) for name in ("a", "b")]
    widths = [bound["half_width"] for bound in own]
    assert on_same_rows["half_width_unpaired"] == pytest.approx(np.hypot(*widths))
    assert on_same_rows["half_width_unpaired"] > 3 * on_same_rows["difference_half_width"]
    assert on_own_rows["half_width_unpaired"] > on_own_rows["difference_half_width"]
    # 15 more steps help, and either pairing says by how much.
    assert on_same_rows["difference"] < -on_same_rows["difference_half_width"]
    apart = abs(on_same_rows["difference"] - on_own_rows["difference"])
    assert apart < 1.5 * np.hypot(*(r["difference_half_width"] for r in summary["runs"]))
    assert str(compared / "out") in message
    assert "Traceback" not in message


def test_the_formats_print_the_same_result(compared, completed, tmp_path):
    runs = [compared / name for name in ("a", "b", "own")]
    table, _ = completed("compare", *runs, "--out", tmp_path / "out")
    summary = read_record(tmp_path / "out" / "summary.json")
    printed = {
        kind: printed_comparison(summary, kind) for kind in ("table", "json", "csv", "quiet")
    }
    assert table == printed["table"] + "\n"
    assert json.loads(printed["json"]) == summary
    assert printed["csv"] + "\n" == (tmp_path / "out" / "runs.csv").read_text()
    differences = [run["difference"] for run in summary["runs"]]
    assert [float(line) for line in printed["quiet"].splitlines()] == differences
    lines = printed["table"].splitlines()
    first = summary["baseline"]
    assert lines[1].split() == [
        str(runs[0]), f"{first['bits_per_dim']:.4f}", "+-", f"{first['half_width']:.4f}"
    ]  # fmt: skip
    for line, path, there in zip(lines[2:], runs[1:], summary["runs"], strict=False):
        paired = there["difference_half_width"]
        assert line.split() == [
            str(path), f"{there['bits_per_dim']:.4f}", "+-", f"{there['half_width']:.4f}",
            f"{there['difference']:+.4f}", "+-", f"{paired:.4f}",
            f"({there['difference_half_width_population']:.4f}),",
            f"{there['half_width_unpaired'] / paired:.1f}",
            "times", "narrower", "than", "unpaired",
        ]  # fmt: skip
    assert "300 of" in printed["table"]
    assert f"all are with ddpmbench nll --terms-of {runs[0]}" in printed["table"]


def test_the_same_comparison_again_is_welcome_in_its_folder(compared, invoke, tmp_path):
    arguments = ("compare", compared / "a", compared / "b", "--out", tmp_path / "out")
    first = invoke(*arguments)
    assert first[0] == 0
    assert invoke(*arguments) == first


# ---- what is refused


class Conditional(torch.nn.Module):
    """A network that knows the label."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x_t, time, labels):
        return self.network(x_t, time) + 0.01 * labels[:, None, None, None]


@pytest.fixture(scope="module")
def evaluate(small_model, small_images, tmp_path_factory):
    """Makes a run that differs from the others in what is named."""
    root, images = tmp_path_factory.mktemp("runs"), small_images.subset(2)

    def make(change=None, **options):
        model, data = small_model.respaced(5), images
        options = {"estimator": "every-pair", "draws": 1, **options}
        match change:
            case "data":
                data = dataclasses.replace(images, pixels=255 - images.pixels)
            case "num_images":
                data = images.subset(1)
            case "num_timesteps":
                model = small_model.respaced(4)
            case "clip":
                model = model.with_conventions(clip=False)
            case "process":
                model = dataclasses.replace(model, schedule=model.schedule.in_family(Process.VE))
            case "variance":
                model = dataclasses.replace(model, variance=Variance.FIXED_SMALL)
            case "importance":
                options = {"half_width": 5.0}
        if labels := options.pop("labels", None):
            network = Conditional(copy.deepcopy(model.network))
            model = dataclasses.replace(model, network=network, num_classes=4)
            data = dataclasses.replace(data, labels=np.array(labels))
        out = root / str(len(list(root.iterdir())))
        db.evaluate_nll(model, data, **options, out=out)
        return out

    return make


@pytest.fixture(scope="module")
def baseline(evaluate):
    return evaluate()


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"change": "num_images"}, "num_images is 1, but 2 in"),
        ({"change": "num_timesteps"}, "num_timesteps is 4, but 5 in"),
        ({"change": "clip"}, "conventions.clip is False, but True in"),
        ({"change": "process"}, "conventions.process is ve, but vp in"),
        ({"change": "variance"}, "conventions.variance is fixed_small, but fixed_large in"),
        ({"decoder": "tanh"}, "conventions.decoder is tanh, but exact in"),
        ({"seed": 1}, "seed is 1, but 0 in"),
        ({"change": "importance"}, "estimator is importance, but every-pair in"),
        ({"draws": 2}, "sampling.draws is 2, but 1 in"),
    ],
)
def test_runs_that_are_no_pair(refused, evaluate, baseline, change, fact):
    other = evaluate(**change)
    line = refused("compare", baseline, other)
    assert line.startswith(f"Error: {other}: {fact} {baseline};")


def test_runs_of_other_images_and_labels(refused, evaluate, baseline):
    runs = [evaluate(labels=labels) for labels in ([1, 2], [2, 1], [1, 1])]
    for first, second, name, field in (
        (baseline, evaluate("data"), "summary.json", "data.sha256"),
        (runs[0], runs[1], "run.json", "labels_sha256"),
    ):
        here, there = (json.loads((run / name).read_text()) for run in (second, first))
        for part in field.split("."):
            here, there = here[part], there[part]
        line = refused("compare", first, second)
        assert f"{field} is {here[:12]}, but {there[:12]} in" in line
    line = refused("compare", runs[0], runs[2])
    assert "conventions.labels is class 1, but of the images in" in line


def test_one_draw_prints_no_interval(completed, baseline, tmp_path):
    copied = shutil.copytree(baseline, tmp_path / "copy")
    printed, _ = completed("compare", baseline, copied, "--out", tmp_path / "out")
    bits = json.loads((baseline / "summary.json").read_text())["bits_per_dim"]
    lines = printed.splitlines()
    assert lines[1].split() == [str(baseline), f"{bits:.4f}"]
    assert lines[2].split() == [str(copied), f"{bits:.4f}", "+0.0000", "(0.0000)"]
    (there,) = read_record(tmp_path / "out" / "summary.json")["runs"]
    assert there["difference"] == 0
    assert there["half_width"] is there["difference_half_width"] is None


def test_what_is_no_pair_of_runs(refused, invoke, baseline, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("precious")
    for name in ("nowhere", "empty", "file"):
        line = refused("compare", baseline, tmp_path / name)
        assert str(tmp_path / name) in line
        assert "run" in line
    assert "two run folders" in refused("compare", baseline)
    assert "RUN" in refused("compare")
    assert "named twice" in refused("compare", baseline, baseline, baseline)
    assert invoke("compare", baseline, baseline, "--out", tmp_path / "out")[0] == 0
    line = refused("compare", baseline, tmp_path / "out")
    assert str(tmp_path / "out") in line
    assert "is a comparison, not a run of nll; name a run of nll" in line


def test_an_out_that_holds_something_else(refused, baseline, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    for out in (tmp_path / "thesis", baseline, tmp_path / "thesis" / "thesis.tex"):
        before = sorted(out.rglob("*"))
        assert f"--out {out}" in refused("compare", baseline, baseline, "--out", out)
        assert sorted(out.rglob("*")) == before


def another_density(path):
    frame = pd.read_csv(path)
    frame.loc[3, "density"] *= 2
    frame.to_csv(path, index=False)


def of_another_design(path):
    """Whole, as a command leaves them that was stopped before it wrote its summary."""
    edit_npz(path, terms=np.zeros((9, 2)))


DAMAGES = [
    ("pairs", "summary.json", remove, "unfinished"),
    ("pairs", "summary.json", lambda path: path.write_text("[]"), "summary.json is damaged"),
    ("pairs", "run.json", truncate, "run.json: damaged"),
    ("pairs", "shards", shutil.rmtree, "shards"),
    ("importance", "proposal.csv", remove, "proposal.csv"),
    ("importance", "proposal.csv", another_density, "proposal.csv"),
    ("importance", "predictions.npz", remove, "predictions.npz"),
    ("importance", "predictions.npz", truncate, "predictions.npz"),
    ("importance", "predictions.npz", of_another_design, "predictions.npz"),
]


@pytest.fixture(scope="module")
def importance_run(evaluate):
    return evaluate("importance")


@pytest.mark.parametrize(("kind", "name", "damage", "word"), DAMAGES)
def test_a_damaged_run(refused, baseline, importance_run, tmp_path, kind, name, damage, word):
    whole = baseline if kind == "pairs" else importance_run
    damaged = shutil.copytree(whole, tmp_path / "damaged")
    damage(damaged / name)
    for runs in ([damaged, whole], [whole, damaged]):
        line = refused("compare", *runs)
        assert word in line
        assert str(damaged) in line
