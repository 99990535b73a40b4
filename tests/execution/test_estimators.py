"""An estimator is added by its class and its place in the list alone."""

import dataclasses
from functools import partial
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from sealing import edit

import ddpmbench as db
from ddpmbench.checksums import write_npz
from ddpmbench.errors import InputError
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.execution.estimator import EveryPair
from ddpmbench.execution.estimators import ESTIMATORS
from ddpmbench.execution.finished_runs import num_steps
from ddpmbench.likelihood.bound import Bound, ImageBounds
from ddpmbench.report.nll import NllReport
from ddpmbench.report.nll_text import model_index_result, printed_nll

OWN_FILE, OWN_TABLE = "own.npz", "own.csv"


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderBound(Bound):
    """A bound of another kind, which knows the decoder term of an image alone."""

    @property
    def by_image(self):
        unknown = np.full(len(self.prior), np.nan)
        return ImageBounds(self.prior, unknown, self.decoder)


@dataclasses.dataclass(frozen=True, eq=False)
class Rounds(EveryPair):
    """Every pair with names, a kind of bound, files and a goal of its own."""

    name: ClassVar[str] = "rounds"
    counts: ClassVar[tuple[str, ...]] = ("num_rounds",)
    unit: ClassVar[str] = "round"
    paired_by: ClassVar[tuple[str, ...]] = ("num_rounds",)
    sealed: ClassVar[tuple[str, ...]] = (OWN_FILE,)
    about_timesteps: ClassVar[str] = "Values of rounds."

    @property
    def goal(self):
        return 0.01

    @property
    def summary(self):
        return {"num_rounds": self.draws, "own_goal": self.goal}

    def run(self, run, stores, correction):
        result = super().run(run, stores, correction)
        return dataclasses.replace(
            result,
            bound=DecoderBound(**vars(result.bound)),
            counts={"num_leftover": 3},
            simpler={"naive": result.bound},
            tables={OWN_TABLE: pd.DataFrame({"x": [1.0]})},
            files={OWN_FILE: partial(write_npz, arrays={"x": np.zeros(1)})},
        )

    @staticmethod
    def num_terms(summary):
        return summary["num_images"] * num_steps(summary) * summary["sampling"]["num_rounds"]

    @staticmethod
    def chance(summary):
        return "the rounds"

    @staticmethod
    def difference(run, baseline, *, prior, clip):
        for one in (run, baseline):
            one.summary["sampling"]["draws"] = one.summary["sampling"]["num_rounds"]
        return EveryPair.difference(run, baseline, prior=prior, clip=clip)


@pytest.fixture(autouse=True)
def _listed(monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "rounds", Rounds)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_estimator_is_evaluated_shown_and_compared(
    small_model, small_images, tmp_path, precision
):
    how = {"precision": precision, "continuous": False}
    evaluate = partial(evaluate_nll, small_model, small_images, **how)
    report = evaluate(estimator="rounds", out=tmp_path / "run")
    expected, summary = evaluate(estimator="every-pair"), report.summary
    assert summary["bits_per_dim"] == expected.summary["bits_per_dim"]
    assert summary["sampling"] == {
        **{"num_rounds": 2, "own_goal": 0.01, "num_leftover": 3},
        "naive": {name: summary[name] for name in ("bits_per_dim", "half_width")},
    }
    assert report.per_image.kl.isna().all()
    assert report.per_image.decoder.equals(expected.per_image.decoder)
    assert {OWN_FILE, OWN_TABLE} < {path.name for path in (tmp_path / "run").iterdir()}
    assert "rounds, 2 rounds, " in printed_nll(summary, "table")
    page = db.write_report(tmp_path / "run", progress=False).read_text()
    assert "the rounds" in page
    assert "Values of rounds." in page
    hub_facts = model_index_result(summary, version=None).metric_args
    assert ("num_rounds" in hub_facts, "own_goal" in hub_facts) == (True, False)
    assert db.compare([tmp_path / "run", report]).runs.difference[1] == 0.0


def test_its_counts_decide_what_is_compared_and_which_shards_are_missing(
    small_model, small_images, tmp_path
):
    folders = [tmp_path / "one", tmp_path / "two"]
    for draws, out in enumerate(folders, start=1):
        evaluate_nll(small_model, small_images, estimator="rounds", draws=draws, out=out)
    with pytest.raises(InputError, match=r"sampling\.num_rounds is 2, but 1"):
        db.compare(folders)
    edit(folders[0] / "summary.json", sampling={"num_rounds": 2})
    with pytest.raises(InputError, match="no shard holds terms"):
        NllReport.load(folders[0])
