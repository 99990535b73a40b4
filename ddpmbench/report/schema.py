"""The schemas of `summary.json` and `environment.json`, checked when a folder is read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ddpmbench.errors import InputError
from ddpmbench.execution.estimators import ESTIMATORS
from ddpmbench.report.metrics import AGAINST_REFERENCE, METRICS, half_width_of

STRICT = "fp32"
"""The precision without a correction."""


class Data(Struct):
    """An image set."""

    source: str
    split: str | None
    sha256: str


class Checkpoint(Struct):
    """The checkpoint of a run."""

    source: str
    family: str
    sha256: str


class Range(Struct, kw_only=True):
    """The data range; results of earlier versions lack it, and have the default range."""

    data_range: str = ""
    levels: int = 0


class Conventions(Range):
    """The conventions of a bound."""

    prediction: str
    variance: str
    clip: bool
    decoder: str
    schedule: str
    labels: str | None


class Correction(Struct):
    """`precision_correction` of a run in low precision.

    Attributes:
        bits_per_dim: the amount added to the bound.
        half_width: of its 95 % interval, included in the bound's.
        num_evaluations: network evaluations in both precisions, included in the run's.
        uncorrected_bits_per_dim: the bound from the terms in low precision.
        kl: the part added to the timesteps t = 2..T.
        decoder: the part added to t = 1.
    """

    bits_per_dim: float
    half_width: float
    num_evaluations: int
    uncorrected_bits_per_dim: float
    kl: float
    decoder: float


class SanityCheck(Struct, kw_only=True):
    """`check` of a run whose checkpoint was checked beforehand."""

    warning: str | None
    likely: str | None
    num_evaluations: int
    outcome: str = ""
    better: str | None = None


class Comparability(Struct, kw_only=True):
    """The part of `summary.json` that states what a bound is of, independent of the network.

    Attributes:
        num_timesteps: T; in continuous time, that of the training.
        num_parts: parts of continuous time that the bound is a sum over; None in discrete time.
    """

    num_images: int
    num_timesteps: int
    num_parts: int | None = None
    num_evaluations: int
    estimator: str
    sampling: dict[str, Any]
    conventions: Conventions
    checkpoint: Checkpoint
    data: Data
    seed: int
    device: str
    precision: str
    engine: str | None = None
    precision_correction: Correction | None = None
    seconds: float
    check: SanityCheck | None = None


class Run(Comparability, kw_only=True):
    """`summary.json` of a run of `nll`."""

    bits_per_dim: float
    half_width: float | None
    half_width_population: float | None
    prior: float
    kl: float
    decoder: float
    continuous_bits_per_dim: float | None = None
    continuous_half_width: float | None = None
    continuous_num_evaluations: int = 0
    continuous_absent: str | None = None

    def __post_init__(self) -> None:
        if (self.precision == STRICT) != (self.precision_correction is None):
            raise ValueError(f"precision_correction: does not belong to {self.precision}")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator: {self.estimator} is unknown")
        count = ESTIMATORS[self.estimator].count
        if not isinstance(self.sampling.get(count), int):
            raise ValueError(f"sampling.{count}: missing, or not an integer")


class NetworkRun(Struct, kw_only=True):
    """The common part of the summaries of `ode`, `likelihoods` and `score`."""

    num_timesteps: int
    num_evaluations: int
    conventions: Conventions
    checkpoint: Checkpoint
    seed: int
    device: str
    precision: str
    seconds: float
    check: SanityCheck | None = None


class OdeRun(NetworkRun, kw_only=True):
    """`summary.json` of a run of `ode`."""

    bits_per_dim: float
    half_width: float | None
    half_width_population: float | None
    difference_from_bound: float
    difference_half_width: float | None
    solver_error: float
    probe_error_per_image: float | None
    num_images: int
    num_ode_images: int
    num_vjps: int
    ode: dict[str, Any]
    bound: dict[str, Any] | None
    data: Data


class LikelihoodsRun(NetworkRun, kw_only=True):
    """`summary.json` of a run of `likelihoods`; its list holds the rows of the csv file."""

    likelihoods: list[dict[str, Any]]
    num_images: int
    num_ode_images: int | None
    num_vjps: int
    ode: dict[str, Any] | None
    data: Data


class ScoredSet(Struct, kw_only=True):
    """An image set in `summary.json` of `score`: means over its images.

    `nearest_distance` is None in a run of one set, and where the first set has one image.
    """

    bits_per_dim: float
    half_width: float
    half_width_population: float | None
    prior: float
    kl: float
    decoder: float
    image_standard_error: float
    code_length: float
    nearest_distance: float | None
    num_images: int
    data: Data


class Area(Struct):
    """An area under the ROC curve and its interval."""

    value: float
    lower: float
    upper: float


class Difference(Struct):
    """A difference of means, second less first, its half width, and its p-value."""

    difference: float
    half_width: float | None
    p_value: float | None


class SetComparison(Struct):
    """The scores of a second image set (B) compared to those of the first (A).

    Attributes:
        name: "generalization gap" where the model was trained on A.
        difference: of the means, B minus A, bits per dimension.
        half_width: of its 95 % interval for the populations; None where a set has one image.
        p_value: two-sided, Welch's test.
        corrected: the same for the bits per dimension minus the code length.
        auroc: of B against A by bits per dimension; `auroc_corrected` minus the code length, and
            `auroc_nearest` by the distance to the nearest other image of A, None if A has one.
        copies: images of B that are also in A.
    """

    name: Literal["generalization gap", "difference"]
    difference: float
    half_width: float | None
    p_value: float | None
    corrected: Difference
    auroc: Area
    auroc_corrected: Area
    auroc_nearest: Area | None
    copies: int


class ScoreRun(NetworkRun, kw_only=True):
    """`summary.json` of a run of `score`; the number without a name is that of the first set."""

    schema: str
    bits_per_dim: float
    sets: Annotated[list[ScoredSet], Meta(min_length=1, max_length=2)]
    comparison: SetComparison | None
    evaluations_per_image: int
    pilot_evaluations: int
    engine: str
    check: SanityCheck | None


class Compared(Struct):
    """A run in `summary.json` of a comparison; the baseline has no difference."""

    run: str
    bits_per_dim: float
    half_width: float | None
    difference: float | None
    difference_half_width: float | None
    difference_half_width_population: float | None
    half_width_unpaired: float | None
    num_evaluations: int | None
    same_rows: float | None


class Comparison(Struct):
    """`summary.json` of a comparison of runs of `nll`."""

    baseline: Compared
    runs: Annotated[list[Compared], Meta(min_length=1)]
    num_images: int
    num_timesteps: int
    estimator: str
    conventions: Conventions
    data: Data
    seed: int


class FeatureNetwork(Struct):
    """The network of a protocol."""

    name: str
    sha256: str
    num_features: int


class Protocol(Struct):
    """The settings that comparable scores share."""

    id: str
    resize: str
    eight_bit: str
    channels: str
    feature_network: FeatureNetwork
    inception_splits: int | None
    inception_order: str | None
    kid_subsets: int
    kid_subset_size: int
    neighbors: int
    num_generated: int
    dtype: str


def _scores(*metrics: str) -> Any:  # noqa: ANN401
    """A record of metrics with their half widths; None where unknown."""
    names = [name for metric in metrics for name in (metric, half_width_of(metric))]
    return msgspec.defstruct("Scores", [(name, float | None) for name in names], kw_only=True)


class Reference(_scores(*AGAINST_REFERENCE)):  # type: ignore[misc]
    """A reference of a run of `fid`, and the scores against it."""

    source: str
    split: str | None
    sha256: str
    num_reference: int | None


class Samples(Struct):
    """The samples that were scored."""

    source: str
    sha256: str
    num_images: int
    skipped: int


class Sampler(Range):
    """The sampler and its settings."""

    method: str
    variance: str | None
    clip: bool
    num_timesteps: int
    num_original_timesteps: int
    eta: float | None
    added_noise: str | None
    labels: str | None
    num_evaluations: int | None = None
    langevin_steps: int | None = None
    step_size: float | None = None
    snr: float | None = None
    solver: str | None = None
    solver_steps: int | None = None


class Sampled(Struct, kw_only=True):
    """The common part of the summaries of runs that sample a checkpoint."""

    checkpoint: Checkpoint
    sampler: Sampler
    seed: int


class SampleRun(Sampled, kw_only=True):
    """`summary.json` of a run of `sample`."""

    num_samples: int
    sha256: str
    eight_bit: str
    precision: str


class Fidelity(_scores(*METRICS)):  # type: ignore[misc]
    """`summary.json` of a run of `fid`; for given samples the checkpoint may be unknown."""

    name: str
    num_generated: int
    num_reference: int | None
    protocol: Protocol
    references: Annotated[list[Reference], Meta(min_length=1)]
    samples: Samples
    checkpoint: Checkpoint | None
    sampler: Sampler | None
    num_evaluations: int | None
    seed: int | None
    device: str
    compute_precision: str
    seconds: float
    warnings: list[str]
    check: SanityCheck | None = None


class FidelityDifference(Struct):
    """The difference of a metric between two runs of `fid`, in the units of `summary.json`.

    Attributes:
        measure: the name of the metric.
        reference: the reference; "" for a metric without one.
        baseline: the value of the baseline.
        value: the value of the run.
        difference: value minus baseline; None if one is unknown, as are the fields below.
        half_width: of its 95 % interval.
        half_width_unpaired: that of two independent runs.
        how: the kind of `half_width`.
    """

    measure: str
    reference: str
    baseline: float | None
    value: float | None
    difference: float | None
    half_width: float | None
    half_width_unpaired: float | None
    how: Literal["paired", "independent"]

    def __post_init__(self) -> None:
        if self.measure not in METRICS:
            raise ValueError(f"measure: {self.measure} is no metric")


class FidelityBaseline(Struct):
    """The first run."""

    run: str


class FidelityRun(FidelityBaseline):
    """A run of `fid` in a comparison; the Frechet distance comes first."""

    differences: list[FidelityDifference]

    def __post_init__(self) -> None:
        if not self.differences or self.differences[0].measure != "fid":
            raise ValueError("differences: the first must be of fid")


class ComparedReference(Data):
    """A reference of runs that are compared."""

    num_reference: int | None


class FidelityComparison(Struct):
    """`summary.json` of a comparison of runs of `fid`."""

    baseline: FidelityBaseline
    runs: Annotated[list[FidelityRun], Meta(min_length=1)]
    name: str
    num_generated: int
    protocol: Protocol
    references: Annotated[list[ComparedReference], Meta(min_length=1)]


class SpeedRun(Struct):
    """`summary.json` of `speed`; its lists hold the rows of the csv files."""

    calls: list[dict[str, Any]]
    parts: list[dict[str, Any]]
    predictions: list[dict[str, Any]]


class Arguments(Struct):
    """The arguments of a command, as resolved and as given."""

    resolved: dict[str, Any]
    given: list[str] | None = None


class Environment(Struct):
    """`environment.json`."""

    versions: dict[str, Any]
    arguments: Arguments


_PLACE = re.compile(r"(?P<problem>.*?)(?: - at `\$\.?(?P<place>.*)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")


def check(record: object, kind: type[Struct], path: Path) -> None:
    """Check the parsed JSON of a file against one of the records above.

    Raises:
        InputError: a field is missing or has another type; one line names the file and the field.
    """
    try:
        msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{path}: missing or damaged: {_where(str(error))}; run the command of its folder again"
        ) from error


def sanity_check_warning(summary: Mapping[str, Any]) -> str | None:
    """The warning of the sanity check in a summary, if any."""
    record = summary.get("check")
    return None if record is None else record["warning"]


def _where(error: str) -> str:
    """A message of msgspec in the form `conventions.labels: missing`."""
    match = _PLACE.fullmatch(error)
    assert match is not None
    problem, place = match["problem"], match["place"] or ""
    if missing := _MISSING.fullmatch(problem):
        problem, place = "missing", f"{place}.{missing['name']}".lstrip(".")
    return f"{place}: {problem}".removeprefix(": ").replace("`", "")
