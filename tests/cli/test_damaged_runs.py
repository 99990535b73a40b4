"""Runs of newer versions; runs whose shards are not all whole: named, or reported as partial."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sealing import edit, write_frame

import ddpmbench as db
from ddpmbench import checksums
from ddpmbench.checksums import seal
from ddpmbench.execution import terms
from ddpmbench.execution.finished import FinishedRun, find_losses
from ddpmbench.execution.term_store import Shards
from ddpmbench.likelihood.bound import estimate_bound
from ddpmbench.likelihood.designs import EveryPair
from ddpmbench.likelihood.terms import VALUE_COLUMNS, Rows, TermTable

OPTIONS = {"pairs": {"estimator": "every-pair"}, "warp": {"half_width": 5.0}}
SHARD = 20
PAIRS_OF_IMAGE = 40 * 2  # T = 40, two draws


IMAGES = {"pairs": 6, "warp": 200}


@pytest.fixture(scope="module")
def evaluate(small_model):
    """Makes the run of an estimator, or goes on with it."""
    whole = db.load_images("fashion-mnist:test", num_images=IMAGES["warp"])
    crops = np.ascontiguousarray(whole.pixels[:, :, 10:18, 10:18])
    images = dataclasses.replace(whole, pixels=crops, source="crops", split=None)

    def run(kind, out):
        options = {**OPTIONS[kind], "batch_size": SHARD, "out": out}
        return db.evaluate_nll(small_model, images.subset(IMAGES[kind]), **options)

    return run


@pytest.fixture(scope="module")
def runs(evaluate, tmp_path_factory):
    """A run of each estimator, in many shards."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terms, "SHARD_ROWS", 1)
        for kind in OPTIONS:
            evaluate(kind, root / kind)
    return root


@pytest.fixture(params=list(OPTIONS))
def run(request, runs, tmp_path):
    """A copy of one of them."""
    return shutil.copytree(runs / request.param, tmp_path / request.param)


@pytest.fixture
def pairs(runs, tmp_path):
    return shutil.copytree(runs / "pairs", tmp_path / "pairs")


@pytest.fixture
def warp(runs, tmp_path):
    return shutil.copytree(runs / "warp", tmp_path / "warp")


def shards(folder):
    return sorted((folder / "shards").glob("terms-*"))


def content(folder):
    """What is in it, but for what --partial writes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if "partial" not in path.parts}


# ---- newer versions


def of_a_later_schema(folder):
    # A later one need not have what this one needs.
    (folder / "summary.json").write_text('{"schema": "ddpmbench.nll/12"}')


def of_a_later_version(folder):
    edit(folder / "run.json", ddpmbench="0.10.0")


def of_a_later_version_published(folder):
    (folder / "run.json").unlink()
    record = json.loads((folder / "environment.json").read_text())
    edit(folder / "environment.json", versions={**record["versions"], "ddpmbench": "7.0rc1"})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (of_a_later_schema, "ddpmbench.nll/12"),
        (of_a_later_version, "ddpmbench 0.10.0"),
        (of_a_later_version_published, "ddpmbench 7.0rc1"),
    ],
)
def test_a_run_of_a_newer_version(refused, runs, warp, make, name):
    make(warp)
    for command in (
        ("rd", "--run", warp),
        ("rd", "--run", warp, "--partial"),
        ("compare", runs / "warp", warp),
        ("compare", warp, runs / "warp"),
        ("nll", "--num-images", 200, "--rows-of", warp, "--out", "x"),
    ):
        line = refused(*command)
        assert name in line
        assert str(warp) in line
        assert "upgrade ddpmbench" in line


@pytest.mark.parametrize("version", ["0.0.9", db.__version__, f"{db.__version__}rc2"])
def test_a_run_of_an_older_version_is_read(said, warp, version):
    edit(warp / "run.json", ddpmbench=version)
    shutil.rmtree(warp / "shards")  # which are of the run of this version
    status, _, told = said("rd", "--run", warp)
    assert status == 0, told


def test_a_later_result_of_another_kind_is_no_newer_version(refused, warp):
    edit(warp / "summary.json", schema="ddpmbench.comparison/2")
    line = refused("rd", "--run", warp)
    assert "is a run of ddpmbench.comparison/2" in line
    assert "upgrade" not in line


def test_a_version_that_is_none(refused, warp):
    edit(warp / "run.json", ddpmbench="latest")
    assert "run.json is damaged" in refused("rd", "--run", warp)


# ---- what is gone is named


def remove(path):
    path.unlink()
    start, stop = (int(word) for word in path.stem.split("-")[1:])
    return f"no shard holds rows {start} to {stop - 1}"


def truncate(path):
    os.truncate(path, path.stat().st_size - 9)
    return f"{path.name} is damaged"


def empty(path):
    os.truncate(path, 0)
    return f"{path.name} is damaged"


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 16  # among the rows; the footer is read by all
    path.write_bytes(content)
    return f"{path.name} is damaged"


def rename(path):
    start, stop = (int(word) for word in path.stem.split("-")[1:])
    path.rename(path.with_name(f"terms-{start + 10**6:012d}-{stop + 10**6:012d}.parquet"))
    return f"no shard holds rows {start} to {stop - 1}"


def shorten(path):
    table = pq.read_table(path)
    pq.write_table(table[:-2], path)
    seal(path)
    return f"{path.name} holds {len(table) - 2} rows, not {len(table)}"


def without_a_column(path):
    pq.write_table(pq.read_table(path).drop_columns(["eps_mse"]), path)
    seal(path)
    return f"{path.name} lacks eps_mse: an earlier version wrote it"


DAMAGES = [remove, truncate, empty, flip_a_bit, rename, shorten, without_a_column]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named(refused, said, runs, run, damage):
    named = damage(shards(run)[1])
    line = refused("compare", runs / run.name, run)
    assert line.startswith(f"Error: {run}: ")
    assert named in line
    if damage is flip_a_bit:  # where its table, whose checksum holds, is all that is read
        assert said("rd", "--run", run)[:2] == said("rd", "--run", runs / run.name)[:2]
        return
    line = refused("rd", "--run", run)
    assert line.startswith(f"Error: --run {run}: ")
    assert named in line
    assert "--partial" in line
    assert ("a new --out" if damage is without_a_column else f"--out {run}") in line
    assert not (run / "figures").exists()


def test_a_run_of_an_earlier_version_is_refused_and_kept(refused, runs, pairs, evaluate):
    for path in shards(pairs):
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({b"seconds": b"1", b"device": b"cpu"}), path)
    kept = content(pairs)
    for command in (
        ("rd", "--run", pairs),
        ("rd", "--run", pairs, "--partial"),
        ("report", pairs),
        ("compare", runs / "pairs", pairs),
    ):
        line = refused(*command)
        assert "an earlier version wrote it" in line
        assert "run its command again with a new --out" in line
    with pytest.raises(db.InputError, match="an earlier version wrote it; name a new --out"):
        evaluate("pairs", pairs)
    assert content(pairs) == kept


def test_a_few_are_named_and_the_others_counted(refused, pairs):
    paths = shards(pairs)
    said = [truncate(path) for path in paths[3:12]]
    line = refused("rd", "--run", pairs)
    assert all(words in line for words in said[:4])
    assert not any(words in line for words in said[4:])
    assert "and 5 more" in line


def test_neighbors_that_are_gone_are_one_range(refused, pairs):
    for path in shards(pairs)[2:5]:
        path.unlink()
    assert f"no shard holds rows {2 * SHARD} to {5 * SHARD - 1};" in refused("rd", "--run", pairs)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_the_message_says_mends_it(said, run, damage, evaluate, monkeypatch):
    before = (run / "rate_distortion.csv").read_bytes()
    path = shards(run)[1]
    damage(path)
    (run / "rate_distortion.csv").unlink()
    if damage is without_a_column:
        kept = content(run)
        with pytest.raises(db.InputError, match="an earlier version wrote it; name a new --out"):
            evaluate(run.name, run)
        assert content(run) == kept
        run = run.parent / "again" / run.name
        monkeypatch.setattr(terms, "SHARD_ROWS", 1)  # the rows share their calls as before
    evaluate(run.name, run)
    assert said("rd", "--run", run)[0] == 0
    assert (run / "rate_distortion.csv").read_bytes() == before


def test_a_published_folder_has_no_shards(said, run, runs):
    shutil.rmtree(run / "shards")
    for options in ((), ("--partial",)):
        status, printed, told = said("rd", "--run", run, *options)
        assert status == 0, told
        assert printed == said("rd", "--run", runs / run.name)[1]


def test_rows_beyond_the_result_and_the_pilot_are_not_looked_at(warp):
    last = shards(warp)[-1]
    start, length = (int(word) for word in last.stem.split("-")[1:])
    # One shard goes beyond the result, another begins there.
    table = pq.read_table(last)
    last.unlink()
    longer = last.with_name(f"terms-{start:012d}-{length + 2:012d}.parquet")
    pq.write_table(pa.concat_tables([table, table[:2]]), longer)
    seal(longer)
    for name in (f"terms-{length:012d}-{length + 9:012d}.parquet", "pilot-1.parquet", "terms.txt"):
        (warp / "shards" / name).write_bytes(b"")
    run = FinishedRun.open(warp, option="", schema="ddpmbench.nll/1")
    assert find_losses(run) is None
    assert find_losses(run, design=run.design) is None


def test_shards_are_hashed_once_and_by_who_reads_them(tmp_path, monkeypatch):
    # 1,310,720 rows in 80 shards.
    images, steps, size = 1280, 1024, 2**14
    (tmp_path / "shards").mkdir()
    store = Shards(tmp_path / "shards", "terms")
    zeros = np.zeros(size, dtype=np.int64)
    values = {name: zeros.astype(np.float64) for name in VALUE_COLUMNS}
    for start in range(0, images * steps, size):
        store.save(start, TermTable(Rows(zeros, zeros, zeros), values), seconds=1.0, device="cpu")
    summary = {
        "num_images": images,
        "num_timesteps": steps,
        "estimator": "every-pair",
        "sampling": {"draws": 1},
        "conventions": {"clip": True},
    }

    def refuse(*_, **__):
        raise AssertionError("a table was made of a shard")

    monkeypatch.setattr(pq, "read_table", refuse)
    hashed, digest = [], checksums._digest

    def count(file, place):
        hashed.append(file.name)
        return digest(file, place)

    monkeypatch.setattr(checksums, "_digest", count)
    assert find_losses(FinishedRun(tmp_path, summary), by_footers=True) is None
    assert hashed == []
    for _ in range(2):  # of the second, all is known
        assert find_losses(FinishedRun(tmp_path, summary)) is None
    assert len(hashed) == len(set(hashed)) == 80
    (tmp_path / "shards" / store.name_of(size, 2 * size)).unlink()
    losses = find_losses(FinishedRun(tmp_path, summary))
    assert losses.num_rows == size
    assert losses.shards == (store.name_of(size, 2 * size),)


# ---- --partial


def partial(said, folder, *options):
    status, printed, told = said("rd", "--run", folder, "--partial", *options)
    assert status == 0, told
    return printed, told


def images_left(folder, lost):
    """The images none of whose rows is in a shard that is lost."""
    design = FinishedRun.open(folder, option="--run", schema="ddpmbench.nll/1").design
    every = design.rows(0, len(design)).image
    gone = [every[slice(*map(int, path.stem.split("-")[1:]))] for path in lost]
    return np.setdiff1d(np.arange(design.num_images), np.concatenate(gone))


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_rest_is_reported_as_partial(said, run, damage):
    path, num_images = shards(run)[1], IMAGES[run.name]
    left = images_left(run, [path])
    assert 0 < len(left) < num_images
    damage(path)
    damaged = content(run)
    printed, told = partial(said, run)
    line = printed.splitlines()[0]
    assert line.startswith(f"PARTIAL: {len(left)} of {num_images} images, ")
    assert f"Warning: {line}\n" in told
    assert f"{len(left)} of {num_images} of crops" in printed
    assert content(run) == damaged, "something of the run was touched"
    assert {p.name for p in (run / "partial").iterdir()} == {
        "summary.json", "per_timestep.csv", "rate_distortion.csv",
    }  # fmt: skip
    summary = json.loads((run / "partial" / "summary.json").read_text())
    of = summary["partial"]
    assert of["num_images"] == summary["num_images"] == len(left)
    assert of["of"] == num_images
    start, stop = (int(word) for word in path.stem.split("-")[1:])
    assert of["lost_rows"] == stop - start
    assert path.name in of["shards"]
    assert summary["bits_per_dim"] == pytest.approx(
        summary["prior"] + summary["kl"] + summary["decoder"], rel=1e-12
    )
    curve = pd.read_csv(run / "partial" / "rate_distortion.csv", dtype=str).map(float)
    assert curve.rate_bits_per_dim[0] + summary["decoder"] == pytest.approx(summary["bits_per_dim"])
    steps = pd.read_csv(run / "partial" / "per_timestep.csv")
    assert steps.num_evaluations.sum() == summary["num_evaluations"]
    printed, told = partial(said, run, "--format", "csv")
    assert printed == (run / "partial" / "rate_distortion.csv").read_text()
    assert "Warning: PARTIAL" in told
    printed, _ = partial(said, run, "--format", "json")
    assert json.loads(printed)["partial"] == of


def test_of_every_pair_it_is_the_evaluation_of_these_images(said, pairs):
    """With the same noise, which belongs to the image."""
    table = pd.concat(pd.read_parquet(path) for path in shards(pairs))
    lost = [shards(pairs)[k] for k in (0, 13)]  # of image 0 and of image 3
    left = [1, 2, 4, 5]
    assert list(images_left(pairs, lost)) == left
    remove(lost[0])
    truncate(lost[1])
    partial(said, pairs)
    summary = json.loads((pairs / "partial" / "summary.json").read_text())
    whole = pd.read_csv(pairs / "per_image.csv", dtype=str).iloc[left].drop(columns="image_id")
    for name, column in whole.map(float).items():
        assert summary[name] == pytest.approx(column.mean(), rel=1e-12)
    of = table[table.image.isin(left)]
    by_step = of.groupby("t").nats.mean() / np.log(2)
    steps = pd.read_csv(pairs / "partial" / "per_timestep.csv")
    np.testing.assert_allclose(steps.bits_per_dim, by_step, rtol=1e-12)
    curve = pd.read_csv(pairs / "partial" / "rate_distortion.csv")
    root = of.assign(root=np.sqrt(of.x_start_mse)).groupby("t").root.mean()
    np.testing.assert_allclose(curve.distortion_rmse, 127.5 * root, rtol=1e-12)
    number = {image: k for k, image in enumerate(left)}
    rows_left = Rows(of.image.map(number).to_numpy(), of.t.to_numpy(), of.draw.to_numpy())
    bound = estimate_bound(
        EveryPair(4, 40, 2),
        whole.prior.map(float).to_numpy() * np.log(2),
        [TermTable(rows_left, {name: of[name].to_numpy() for name in VALUE_COLUMNS})],
    )
    for name in ("half_width", "half_width_population"):
        assert summary[name] == pytest.approx(getattr(bound, name) / np.log(2), rel=1e-12)
    assert summary["num_evaluations"] == 4 * PAIRS_OF_IMAGE
    assert summary["partial"]["prior"] == "of these images"


def test_of_a_warp_it_counts_every_row_by_its_density(said, warp):
    run = FinishedRun.open(warp, option="", schema="ddpmbench.nll/1")
    table = pd.concat(pd.read_parquet(path) for path in shards(warp))
    assert len(table) == len(run.design)
    path = shards(warp)[0]
    left = images_left(warp, [path])
    assert list(left) == list(range(SHARD, IMAGES["warp"]))
    prior = np.linspace(0.1, 0.2, IMAGES["warp"])
    ids = [f"a, {n}" for n in range(IMAGES["warp"])]
    frame = {"image_id": ids, "prior": prior, "kl": np.nan, "decoder": np.nan}
    write_frame(warp / "per_image.csv", {**frame, "bits_per_dim": np.nan})
    path.unlink()
    printed, _ = partial(said, warp)
    assert "mean of all images" not in printed
    summary = json.loads((warp / "partial" / "summary.json").read_text())
    assert summary["prior"] == pytest.approx(prior[left].mean(), rel=1e-12)
    of = table[table.image.isin(left)]
    first, later = of[of.t == 1], of[of.t > 1]
    decoder = first.groupby("image").nats.mean().mean()
    weighted = later.nats / run.density()[later.t - 2]
    kl = weighted.sum() / len(left) / run.summary["sampling"]["rotations"]
    assert summary["decoder"] == pytest.approx(decoder / np.log(2), rel=1e-12)
    assert summary["kl"] == pytest.approx(kl / np.log(2), rel=1e-12)
    assert summary["num_evaluations"] == len(of)
    assert set(summary["sampling"]) == {"rotations"}


def test_without_the_priors_of_the_images_it_says_so(said, warp):
    (warp / "per_image.csv").unlink(missing_ok=True)
    shards(warp)[0].unlink()
    printed, _ = partial(said, warp)
    assert printed.splitlines()[0].endswith("; the prior is the mean of all images")
    whole, left = (
        json.loads((folder / "summary.json").read_text()) for folder in (warp, warp / "partial")
    )
    assert left["prior"] == pytest.approx(whole["prior"], rel=1e-12)


def test_without_a_second_draw_of_the_decoder_the_interval_is_not_known(said, warp):
    design = FinishedRun.open(warp, option="", schema="ddpmbench.nll/1").design
    again = range(design.num_images, design.num_images + len(design.redrawn))
    for path in shards(warp):
        start, stop = (int(word) for word in path.stem.split("-")[1:])
        if start < again.stop and stop > again.start:
            path.unlink()
    printed, _ = partial(said, warp)
    assert "unknown for these images (no second draw of the decoder is left)" in printed

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = (warp / "partial" / "summary.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    assert summary["half_width"] is None
    assert summary["half_width_population"] > 0
    assert json.loads(partial(said, warp, "--format", "json")[0], parse_constant=refuse)


def test_rows_under_another_name_are_found_out(said, pairs):
    # Two shards change places: nothing is missing, and both are whole.
    one, other = shards(pairs)[5], shards(pairs)[9]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    assert "holds other rows than its name says" in said("rd", "--run", pairs)[2]
    printed, _ = partial(said, pairs)
    assert printed.startswith("PARTIAL: 4 of 6 images")
    shown = json.loads((pairs / "partial" / "summary.json").read_text())["partial"]["shards"]
    assert shown == [one.name, other.name]


def test_a_shard_that_is_damaged_inside_is_found_out(said, pairs):
    path = shards(pairs)[5]
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    printed, _ = partial(said, pairs)
    assert printed.startswith("PARTIAL: 5 of 6 images")


def test_of_a_whole_run_it_is_the_whole_answer(said, run):
    printed, told = partial(said, run)
    assert printed == said("rd", "--run", run)[1]
    assert "no shard is missing or damaged" in told
    assert "PARTIAL" not in printed + told
    assert not (run / "partial").exists()


def test_without_a_whole_image_there_is_no_answer(refused, run):
    for path in shards(run)[:-1]:
        truncate(path)
    line = refused("rd", "--run", run, "--partial")
    assert f"--run {run}: --partial: no image has all its rows left" in line
    assert not (run / "partial").exists()


def test_what_is_left_is_no_run(refused, said, runs, pairs):
    shards(pairs)[0].unlink()
    partial(said, pairs)
    for command in (("rd", "--run"), ("compare", runs / "pairs")):
        line = refused(*command, pairs / "partial")
        assert "is a run of ddpmbench.partial/1" in line


def test_partial_is_of_a_finished_run(refused):
    line = refused("rd", "--partial")
    assert "--partial" in line
    assert "--run" in line
