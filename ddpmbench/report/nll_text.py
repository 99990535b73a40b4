"""A bound as printed, and as metadata for the Hugging Face hub.

A summary is the object of `summary.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpmbench.execution.estimators import kind_of
from ddpmbench.execution.finished_runs import FinishedRun
from ddpmbench.files import replacing, writing_to
from ddpmbench.report.display import Card, in_folder
from ddpmbench.report.tables import correction_line, uncorrected_note
from ddpmbench.report.text import (
    bound_line,
    counted,
    device_line,
    digits_by,
    fact_lines,
    images_line,
    model_facts,
    plus_minus,
    printed,
    unpadded,
    with_interval,
)

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

PARTS = {
    "prior": "L_T, the end of the chain",
    "kl": "L_1..L_{T-1}, the timesteps",
    "decoder": "L_0, the pixels",
}
LARGE_PRIOR = 0.1
"""Least L_T, in bits per dimension, that is worth a line."""


def printed_nll(summary: dict[str, Any], output_format: str) -> str:
    """The bound for standard output; see `printed`."""
    lines = [headline(summary), "", *_parts(summary), "", *comparability(summary)]
    return printed(summary, output_format, lines)


def bound_card(summary: Mapping[str, Any], folder: Path | None) -> Card:
    """The card of a run of `nll`."""
    numbers = {
        "for these images": _bound(summary, "half_width"),
        "for their population": _bound(summary, "half_width_population"),
        **{name: f"{summary[name]:,.4f} ({what})" for name, what in PARTS.items()},
    }
    return Card(headline(summary), numbers, in_folder(comparable_facts(summary), folder))


def _bound(summary: Mapping[str, Any], name: str) -> str:
    half_width = summary[name]
    if half_width is None:
        return "interval unknown"
    return f"{with_interval(summary['bits_per_dim'], half_width)} bits/dim, 95 %"


def headline(summary: Mapping[str, Any]) -> str:
    """The bound and its interval in one line."""
    return bound_line(summary["bits_per_dim"], summary["half_width"])


def _parts(summary: Mapping[str, Any]) -> list[str]:
    digits = digits_by(summary["half_width"])
    lines = [f"{name:<12}{summary[name]:>10,.{digits}f}  {what}" for name, what in PARTS.items()]
    return [f"{'part':<12}{'bits/dim':>10}", *lines]


def comparability(summary: Mapping[str, Any]) -> list[str]:
    """The settings that comparable numbers of `nll` share, a line each."""
    fields = {"interval": _interval(summary)}
    if summary.get("continuous_bits_per_dim") is not None:
        value = with_interval(summary["continuous_bits_per_dim"], summary["continuous_half_width"])
        fields["continuous"] = (
            f"{value} bits/dim in continuous time, from the difference for some terms"
        )
    fields |= comparable_facts(summary)
    if summary["prior"] >= LARGE_PRIOR:
        fields["prior"] = (
            f"{summary['prior']:.4f} bits/dim: q(x_T) is far from the normal prior of sampling"
        )
    if note := uncorrected_note(summary):
        fields["tables"] = note
    return fact_lines(fields.items())


def comparable_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The settings that comparable numbers of `nll` share, by name."""
    correction = correction_line(summary)
    return {
        "images": images_line(summary),
        **_padding_line(summary),
        **model_facts(summary),
        "estimator": f"{summary['estimator']}, {_amount(summary)}, "
        f"{counted(summary['num_evaluations'], 'network evaluation')}, seed {summary['seed']}",
        **({"precision": correction} if correction else {}),
        "device": device_line(summary),
    }


def _padding_line(summary: Mapping[str, Any]) -> dict[str, str]:
    of_images = unpadded(summary)
    if of_images is None:
        return {}
    padding = summary["data"]["padding"]
    before, after = (f"{width}x{height}" for height, width in (padding["from"], padding["to"]))
    value = with_interval(of_images["bits_per_dim"] or 0.0, of_images["half_width"])
    return {"padding": f"{before} to {after} with black; <= {value} bits per dimension of {before}"}


def num_sampled_images(summary: Mapping[str, Any]) -> int:
    """The number of images that the estimator evaluated."""
    return int(summary["sampling"].get("num_sampled_images", summary["num_images"]))


def _amount(summary: Mapping[str, Any]) -> str:
    kind, count = kind_of(summary), num_sampled_images(summary)
    amount = counted(summary["sampling"][kind.counts[0]], kind.unit)
    is_all = count == summary["num_images"]
    return amount if is_all else f"{amount} of {counted(count, 'image')}"


def _interval(summary: Mapping[str, Any]) -> str:
    if summary["half_width"] is None:
        noise = "unknown for these images (one draw; two give an interval)"
    else:
        noise = f"{plus_minus(summary['half_width'])} for these images"
    population = summary["half_width_population"]
    if population is None:
        return f"95 %: {noise}; unknown for the population (one image)"
    return f"95 %: {noise}; {plus_minus(population)} for the population of images"


# ---- metadata that the Hugging Face hub understands
#
# There are two formats: `.eval_results/*.yaml` in a model's repository, which names a data set of
# the hub, and the older `model-index` at the head of a model card. The hub's package writes both.

HUB_DATASETS = {"fashion-mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}
"""Data sets by their ids on the hub."""
METRIC = "bits_per_dim"
EVAL_RESULTS = Path("huggingface", ".eval_results", "ddpmbench.yaml")
MODEL_INDEX = Path("huggingface", "model-index.yaml")


def eval_results(summary: dict[str, Any], *, version: str | None) -> list["EvalResultEntry"]:
    """The entry of an `.eval_results` file; empty if no data set of the hub has the images.

    The task is named by metric and split, because neither data set defines tasks, so that the bound
    is not listed among other metrics.

    Source: https://huggingface.co/docs/hub/eval-results
    """
    from huggingface_hub import EvalResultEntry

    dataset = _hub_dataset(summary)
    if dataset is None:
        return []
    facts = ", ".join(f"{name}={value}" for name, value in _hub_facts(summary, version).items())
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=f"{METRIC}_{summary['data']['split']}",
        value=summary["bits_per_dim"],
        notes=f"Variational upper bound of the NLL, bits/dim, lower is better; {facts}",
    )
    return [entry]


def model_index_result(summary: dict[str, Any], *, version: str | None) -> "EvalResult":
    """The same for the `model-index` of a model card.

    Images outside the hub's data sets have the file's name, and "local" in place of the id.

    Source: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    from huggingface_hub import EvalResult

    data, labels = summary["data"], summary["conventions"]["labels"]
    return EvalResult(
        task_type="unconditional-image-generation" if labels is None else "other",
        task_name="Image generation" if labels is None else "Class-conditional image generation",
        dataset_type=_hub_dataset(summary) or "local",
        dataset_name=Path(data["source"]).name,
        dataset_split=data["split"],
        dataset_args={"num_images": summary["num_images"], "sha256": data["sha256"]},
        metric_type=METRIC,
        metric_name="NLL upper bound (bits/dim)",
        metric_value=summary["bits_per_dim"],
        metric_args=_hub_facts(summary, version),
    )


def write_hugging_face(folder: Path, summary: dict[str, Any]) -> list[Path]:
    """Write both formats into `huggingface/` of a run folder, and return the files.

    `.eval_results/` goes into a model's repository as it is; the content of `model-index.yaml` goes
    to the head of the model card.

    Raises:
        InputError: the folder cannot be written, or its `run.json` is damaged.
    """
    import yaml
    from huggingface_hub import ModelCardData, eval_result_entries_to_yaml

    version = FinishedRun(folder, summary).version
    name = Path(summary["checkpoint"]["source"]).name
    result = model_index_result(summary, version=version)
    card = ModelCardData(model_name=name, eval_results=[result])
    texts = {MODEL_INDEX: card.to_yaml() + "\n"}
    if entries := eval_results(summary, version=version):
        texts[EVAL_RESULTS] = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    with writing_to(folder, ""):
        for place, text in texts.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder / place) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return [folder / place for place in texts]


def _hub_dataset(summary: dict[str, Any]) -> str | None:
    data = summary["data"]
    # A file or folder has no split, whatever its name.
    return HUB_DATASETS.get(data["source"]) if data["split"] else None


def _hub_facts(summary: dict[str, Any], version: str | None) -> dict[str, Any]:
    """The interval of the number, and the settings that comparable numbers share."""
    data, checkpoint, counts = summary["data"], summary["checkpoint"], kind_of(summary).counts
    facts = {
        "half_width": summary["half_width"],
        "half_width_population": summary["half_width_population"],
        "confidence": 0.95,
        "num_images": summary["num_images"],
        "split": data["split"],
        "num_timesteps": summary["num_timesteps"],
        **summary["conventions"],
        "estimator": summary["estimator"],
        # The half width and the number of network evaluations cover the rest.
        **{name: value for name, value in summary["sampling"].items() if name in counts},
        "num_evaluations": summary["num_evaluations"],
        "seed": summary["seed"],
        "precision": summary["precision"],
        "checkpoint_family": checkpoint["family"],
        "checkpoint_sha256": checkpoint["sha256"],
        "data_sha256": data["sha256"],
        "ddpmbench": version,
    }
    return {name: value for name, value in facts.items() if value is not None}
