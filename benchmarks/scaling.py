"""What many processes gain: measured with 1, 2 and 4, simulated with up to 1,024.

    python benchmarks/scaling.py --out results/scaling

Measures what the parts of a run take on this machine, holds the formula of `scaling_model` against
whole runs of `ddpmbench nll` under torchrun, and simulates clusters of such machines.
"""

import dataclasses
import itertools
import json
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from scaling_measure import Inputs, costs_of, probe, seconds_of
from scaling_model import Costs, Job, efficiency
from scaling_model import seconds_of as formula
from scaling_report import draw, readme
from scaling_simulation import Cluster, simulate
from scaling_tables import Tables, measure_tables

from ddpmbench.execution.devices import resolve_device
from ddpmbench.execution.folder import environment

PROCESSES = (1, 2, 4)
RANKS = tuple(2**power for power in range(11))
TRIALS = 50
NUM_TIMESTEPS = 1000
SCENARIOS = {
    "one checkpoint, +-0.005": ("rotated-warp", 10_000, 1),
    "one checkpoint, every pair": ("every-pair", 10_000, 1),
    "100 checkpoints, +-0.005": ("rotated-warp", 10_000, 100),
}
"""Estimator, images and checkpoints."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Images of the runs that are measured; a sampled run of 200 or more ends at its first look.

    Attributes:
        whole: of whole runs, by estimator.
        tables: of a small and a large run that tell what rank 0 does, by estimator.
        repeats: of each whole run.
    """

    whole: dict[str, int]
    tables: dict[str, tuple[int, int]]
    repeats: int


LONG = Sizes(
    {"rotated-warp": 2000, "every-pair": 8},
    {"rotated-warp": (250, 5000), "every-pair": (2, 300)},
    repeats=3,
)
QUICK = Sizes(
    {"rotated-warp": 400, "every-pair": 2},
    {"rotated-warp": (200, 2000), "every-pair": (2, 20)},
    repeats=1,
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What was measured of a machine; `costs.json`.

    Attributes:
        costs: of the parts.
        tables: of rank 0, by estimator.
        others: how much slower a process is beside others, by how many there are.
    """

    costs: Costs
    tables: dict[str, Tables]
    others: dict[int, float]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Machine":
        """The inverse of `write`."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            Costs(**fields["costs"]),
            {name: Tables(**of) for name, of in fields["tables"].items()},
            {int(count): factor for count, factor in fields["others"].items()},
        )


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="For the results.")
@click.option("--device", default="auto", show_default=True, help="Where networks run.")
@click.option("--ckpt", default="default", show_default=True, help="As that of nll.")
@click.option("--data", default="fashion-mnist:test", show_default=True, help="As that of nll.")
@click.option(
    "--costs", type=click.Path(path_type=Path), help="costs.json of another machine: simulate only."
)
@click.option("--quick", is_flag=True, help="Shorter runs, whose figures are rough.")
def main(out: Path, device: str, ckpt: str, data: str, costs: Path | None, quick: bool) -> None:
    """Measure, check the formula, simulate."""
    out.mkdir(parents=True, exist_ok=True)
    checked, command = None, ["python", "benchmarks/scaling.py", *sys.argv[1:]]
    if costs is None:
        inputs = Inputs(device, ckpt, data)
        machine, checked = measure(inputs, QUICK if quick else LONG)
        machine.write(out / "costs.json")
        checked.to_csv(out / "checked.csv", index=False)
        resolved = {**dataclasses.asdict(inputs), "threads_a_process": 1}
        record = environment(resolve_device(device), given=command, resolved=resolved)
        text = json.dumps(record, indent=2) + "\n"
        (out / "environment.json").write_text(text, encoding="utf-8")
        click.echo(checked.to_string(index=False))
    else:
        machine = Machine.read(costs)
    simulated = simulation(machine, trials=5 if quick else TRIALS)
    simulated.to_csv(out / "simulated.csv", index=False)
    draw(simulated, checked, out)
    if checked is not None:
        text = readme(machine.costs, checked, simulated, cluster=Cluster(), command=command)
        (out / "README.md").write_text(text, encoding="utf-8")
    click.echo(simulated.to_string(index=False))


def measure(inputs: Inputs, sizes: Sizes) -> tuple[Machine, pd.DataFrame]:
    """What the parts take, and whole runs beside the formula.

    Returns:
        The machine, and one row an estimator and number of processes: `estimator`,
        `num_evaluations`, `processes`, `measured` and `predicted` seconds, `error` of the
        prediction relative to what was measured.
    """
    probed = {count: probe(inputs, count, max(sizes.whole.values())) for count in PROCESSES}
    one, many = probed[1], max(PROCESSES)
    others = {count: of.calls[-1] / one.calls[-1] for count, of in probed.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        costs = costs_of(one, probed[many].meet / many, folder / "shards")
        tables = {
            estimator: measure_tables(inputs, estimator, of, costs, folder)
            for estimator, of in sizes.tables.items()
        }
        machine = Machine(costs, tables, others)
        rows = [
            checked_run(inputs, machine, (estimator, num_images, count), folder, sizes.repeats)
            for (estimator, num_images), count in itertools.product(sizes.whole.items(), PROCESSES)
        ]
    return machine, pd.DataFrame(rows)


def checked_run(
    inputs: Inputs, machine: Machine, run: tuple[str, int, int], folder: Path, repeats: int
) -> dict[str, object]:
    """A row of `measure`: the median of whole runs (estimator, images, processes)."""
    estimator, num_images, count = run
    job = machine.tables[estimator].job(estimator, num_images, NUM_TIMESTEPS)
    seconds = []
    for repeat in range(repeats):
        out = folder / f"{estimator}-{count}-{repeat}"
        seconds.append(seconds_of(count, inputs.command(estimator, num_images, out)))
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        if summary["num_evaluations"] != job.rows:
            raise RuntimeError(f"{out}: not the {job.rows:,} rows of the formula")
    measured = float(np.median(seconds))
    predicted = formula(job, machine.costs, count, others=machine.others[count])
    return {
        "estimator": estimator,
        "num_evaluations": job.rows,
        "processes": count,
        "measured": measured,
        "predicted": predicted,
        "error": predicted / measured - 1,
    }


def simulation(machine: Machine, *, trials: int) -> pd.DataFrame:
    """Clusters of such processes, each with a core or device of its own.

    Returns:
        One row a scenario and number of ranks: `scenario`, `ranks`, `group` (ranks a run),
        `formula` (seconds), `median`, `low` and `high` seconds of the simulation (the middle 90 %
        of the trials), `efficiency` in the median.
    """
    rows = []
    for name, (estimator, num_images, jobs) in SCENARIOS.items():
        job = machine.tables[estimator].job(estimator, num_images, NUM_TIMESTEPS)
        for ranks in RANKS:
            group = max(1, ranks // jobs)
            found = simulated_seconds(job, machine.costs, (ranks // group, group, jobs), trials)
            low, median, high = np.quantile(found, [0.05, 0.5, 0.95])
            waves = -(-jobs // (ranks // group))
            rows.append(
                {
                    "scenario": name,
                    "ranks": ranks,
                    "group": group,
                    "formula": waves * formula(job, machine.costs, group),
                    "median": median,
                    "low": low,
                    "high": high,
                    "efficiency": efficiency(job, machine.costs, ranks, seconds=median, jobs=jobs),
                }
            )
    return pd.DataFrame(rows)


def simulated_seconds(
    job: Job, costs: Costs, groups: tuple[int, int, int], trials: int
) -> list[float]:
    """Of so many trials."""
    cluster = Cluster()
    return [simulate(job, costs, cluster, groups=groups, seed=seed) for seed in range(trials)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
