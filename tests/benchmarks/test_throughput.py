"""The report of a benchmark run, from what pytest-benchmark really writes."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from ddpmbench.errors import InputError

ROOT = Path(__file__).parents[2]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    from report import (
        COLUMNS,
        machine_record,
        main,
        markdown,
        read_benchmarks,
        speeds_against_batch,
        throughput_frame,
    )

HOST = "host-of-the-benchmarks"
BENCHMARKS = """
import pytest

FORWARD = {"what": "forward", "model": "shipped", "precision": "fp32", "channels_last": True,
           "compiled": False, "cuda_graph": False}


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("device", ["cpu, 2 threads", "Made-up GPU 80GB"])
def test_forward(benchmark, batch, device):
    benchmark.extra_info.update(FORWARD, batch=batch, device=device, calls_per_second=100.0 * batch,
                                images_per_second=100.0 * batch, share_of_peak=0.1 * batch**0.5,
                                eps_error=1e-3)
    benchmark.pedantic(sum, args=((1, 2),), rounds=3)


def test_row(benchmark):
    benchmark.extra_info.update(
        what="likelihood row", model="shipped", precision="fp32", device="cpu, 2 threads",
        share_of_peak=0.9, batch=8, part_seconds={"network": 0.003, "noise": 0.001, "rest": 0.0005})
    benchmark.pedantic(sum, args=((1, 2),), rounds=3)


def test_peer(benchmark):
    benchmark.extra_info.update(peer="a peer", ratio=2.5, ratio_low=2.25, ratio_high=2.75)
    benchmark.pedantic(sum, args=((1, 2),), rounds=3)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "test_some_speed.py").write_text(BENCHMARKS)
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-only", "-p", "no:cacheprovider"]
    command += [f"--rootdir={folder}", "--benchmark-json", "speed.json"]
    environment = {name: of for name, of in os.environ.items() if "XDIST" not in name}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    found = json.loads((folder / "speed.json").read_text())
    assert "node" in found["machine_info"], "pytest-benchmark names the machine no more"
    found["machine_info"]["node"] = HOST
    (folder / "speed.json").write_text(json.dumps(found))
    return folder / "speed.json"


@pytest.fixture(scope="module")
def found(written):
    return read_benchmarks(written)


@pytest.fixture(scope="module")
def reported(written, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "throughput"
    result = CliRunner().invoke(main, [str(written), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_a_row_holds_what_the_benchmark_said_and_what_was_timed(found):
    frame = throughput_frame(found)
    assert len(frame) == len(found["benchmarks"])
    for row, benchmark in zip(frame.to_dict("records"), found["benchmarks"], strict=True):
        assert row["median_seconds"] == benchmark["stats"]["median"]
        assert row["rounds"] == 3
        for name in ("what", "model", "ratio", "ratio_low", "share_of_peak"):
            said = benchmark["extra_info"].get(name)
            assert pd.isna(row[name]) if said is None else row[name] == said
    known = [name for name in COLUMNS if name in frame]
    assert list(frame.columns[: len(known)]) == known
    assert set(frame.suite) == {"some_speed"}


def test_words_are_those_of_the_package(found):
    frame = throughput_frame(found)
    forward = frame[frame.what == "forward"]
    assert set(forward.engine) == {"fp32, channels_last"}
    assert (forward.evaluations_per_second == 100 * forward.batch_size).all()
    assert not {"batch", "calls_per_second"} & set(frame)


def test_who_names_no_device_ran_on_the_cpu_that_others_name(found):
    frame = throughput_frame(found)
    of_peer = frame[frame.what.isna()].device
    assert set(of_peer) == set(frame[frame.what == "likelihood row"].device)
    assert of_peer.iloc[0].endswith(", 2 threads")
    assert frame.device.nunique() == 2


def test_each_device_has_tables_and_figures_of_its_own_rows(found, reported):
    frame = throughput_frame(found)
    tables = {path.stem: pd.read_csv(path) for path in reported.glob("*.csv")}
    assert "made-up-gpu-80gb" in tables
    assert sum(map(len, tables.values())) == len(frame)
    for stem, table in tables.items():
        assert table.device.nunique() == 1
        assert not table.isna().all().any(), "an empty column"
        assert (reported / f"{stem}.json").exists()
        numbers = pd.read_csv(reported / "figures" / f"{stem}-batch.csv")
        forward = table[table.what == "forward"]
        assert sorted(numbers.per_second) == sorted(forward.images_per_second)
        peak = pd.read_csv(reported / "figures" / f"{stem}-peak.csv")
        assert peak.share_of_peak.tolist() == [forward.share_of_peak.max()]
    (parts,) = (reported / "figures").glob("*-parts.csv")
    assert pd.read_csv(parts).network.tolist() == [3.0]


def test_nothing_that_is_written_names_the_machine_or_its_folders(written, reported):
    for path in reported.rglob("*.*"):
        if path.suffix in (".csv", ".json", ".md", ".svg"):
            text = path.read_text()
            assert HOST not in text
            assert str(written.parent) not in text


def test_a_ratio_stands_with_its_interval_and_an_error_with_its_speed(found):
    frame = throughput_frame(found)
    text = markdown(frame[frame.device.str.endswith("threads")], machine_record(found))
    (peer,) = (line for line in text.splitlines() if "a peer" in line)
    assert "| a peer | 2.50 (2.25 to 2.75) |" in peer
    (batch_8,) = (line for line in text.splitlines() if "| forward | shipped | 8 | fp32" in line)
    assert "| 800 |" in batch_8
    assert "1.0e-03" in batch_8
    assert "nan" not in text


def test_one_size_of_batch_makes_no_curve(found):
    frame = throughput_frame(found)
    assert set(speeds_against_batch(frame).panel) == {"forward, shipped"}
    assert not len(speeds_against_batch(frame[frame.batch_size != 8]))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"benchmarks": []}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match=r"other\.json: .*--benchmark-json"):
        read_benchmarks(tmp_path / "other.json")


def test_a_file_that_is_not_there_is_refused_in_one_line(tmp_path):
    result = CliRunner().invoke(main, [str(tmp_path / "none.json"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "none.json" in result.output
    assert not (tmp_path / "out").exists()


def test_the_record_says_where_and_when(found):
    record = machine_record(found)
    assert record["python"] == platform.python_version()
    assert record["datetime"] == found["datetime"]
    assert json.loads(json.dumps(record)) == record
