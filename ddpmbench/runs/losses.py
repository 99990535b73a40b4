"""What is gone of a finished run: shards that are not there, or that cannot be used."""

import dataclasses

from ddpmbench.errors import InputError
from ddpmbench.likelihood.design import Design
from ddpmbench.likelihood.terms import columns_of_bound
from ddpmbench.likelihood.warp import num_rows
from ddpmbench.runs.finished import SUMMARY, FinishedRun
from ddpmbench.runs.shards import EARLIER, UNREAD, Shards

ROWS = "terms"
"""The name of the rows that a result is made of."""
_NAMED = 4  # in a message; of the others it says how many there are


@dataclasses.dataclass(frozen=True)
class Losses:
    """What is gone of the rows of a run.

    Attributes:
        num_rows: how many rows no shard holds that can be used.
        absent: the ranges of positions that no shard is named for, from and up to.
        faults: what is wrong with each shard that cannot be used, by its name.
        shards: what the shards are called that are gone or cannot be used.
    """

    num_rows: int
    absent: tuple[tuple[int, int], ...]
    faults: dict[str, str]
    shards: tuple[str, ...]

    @property
    def named(self) -> str:
        """All of them in words, or the first few and how many more."""
        parts = [f"no shard holds rows {start} to {stop - 1}" for start, stop in self.absent]
        parts += [f"{name} {fault}" for name, fault in self.faults.items()]
        more = len(parts) - _NAMED
        return ", ".join(parts[:_NAMED]) + (f", and {more} more" if more > 0 else "")

    def remedy(self, run: FinishedRun) -> str:
        """What brings them back."""
        if any(EARLIER in fault for fault in self.faults.values()):
            return "run its command again with a new --out"
        if any(UNREAD in fault for fault in self.faults.values()):
            return "try again when they can be read"
        return f"run its command again with --out {run.path} to compute them again"


def find_losses(
    run: FinishedRun, *, design: Design | None = None, by_footers: bool = False
) -> Losses | None:
    """Whether the shards of a run are all there and whole.

    A folder without shards is a published one, of which none are expected.

    Args:
        run: the run.
        design: None takes the word of the files' checksums; the rows of the run holds what is in
            them against it.
        by_footers: whether the checksums of the shards are left out, for who does not read them.

    Returns:
        What is gone; None where nothing is.

    Raises:
        InputError: the folder cannot be read, or its summary is damaged.
    """
    if not (run.path / "shards").is_dir():
        return None
    length, store = _length(run), run.shards(ROWS)
    faults = store.faults(length, columns_of(run), design=design, by_footers=by_footers)
    absent = store.missing(length)
    if not absent and not faults:
        return None
    left = usable(run, faults).missing(length)
    return Losses(
        num_rows=sum(stop - start for start, stop in left),
        absent=tuple(absent),
        faults=faults,
        shards=tuple(sorted([*(store.name_of(*gap) for gap in absent), *faults])),
    )


def refuse_losses(run: FinishedRun, *, option: str, reads_rows: bool = False) -> None:
    """Refuse a run of which rows are gone.

    Args:
        run: the run.
        option: how the user named it.
        reads_rows: whether the command computes with the rows, so that all of each shard counts;
            the others read the tables, whose checksums are known, and have `--partial`.

    Raises:
        InputError: some are; it names them.
    """
    losses = find_losses(run, by_footers=not reads_rows)
    if losses is None:
        return
    named = f"{option} {run.path}".strip()
    remedy = losses.remedy(run)
    if not reads_rows:
        remedy += ", or see what the rest says with --partial"
    raise InputError(f"{named}: not all of its shards are whole: {losses.named}; {remedy}")


def usable(run: FinishedRun, faults: dict[str, str]) -> Shards:
    """The shards of a run without those that cannot be used."""
    return run.shards(ROWS).without(faults)


def columns_of(run: FinishedRun) -> tuple[str, str, str]:
    """The columns that the result of a run is made of.

    Raises:
        InputError: its summary is damaged.
    """
    try:
        return columns_of_bound(clip=bool(run.summary["conventions"]["clip"]))
    except (KeyError, TypeError) as error:
        raise _damaged(run) from error


def _length(run: FinishedRun) -> int:
    """Rows of the run; what they follow from need not be at hand."""
    of = run.summary
    try:
        num_images, num_timesteps = int(of["num_images"]), int(of["num_timesteps"])
        if of["estimator"] == "every-pair":
            return num_images * num_timesteps * int(of["sampling"]["draws"])
        return num_rows(num_images, int(of["sampling"]["rotations"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(run) from error


def _damaged(run: FinishedRun) -> InputError:
    return InputError(f"{run.path / SUMMARY}: damaged; run the command of its folder again")
