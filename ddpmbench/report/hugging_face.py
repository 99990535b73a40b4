"""The result of `nll` as metadata that the Hugging Face hub understands.

There are two formats: `.eval_results/*.yaml` in a model's repository, which names a data set of the
hub, and the older `model-index` at the head of a model card. The hub's package writes both.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpmbench.execution.finished import FinishedRun
from ddpmbench.files import replacing, writing_to

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

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
    facts = ", ".join(f"{name}={value}" for name, value in _facts(summary, version).items())
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
        metric_args=_facts(summary, version),
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


def _facts(summary: dict[str, Any], version: str | None) -> dict[str, Any]:
    """The interval of the number, and the settings that comparable numbers share."""
    data, checkpoint = summary["data"], summary["checkpoint"]
    facts = {
        "half_width": summary["half_width"],
        "half_width_population": summary["half_width_population"],
        "confidence": 0.95,
        "num_images": summary["num_images"],
        "split": data["split"],
        "num_timesteps": summary["num_timesteps"],
        **summary["conventions"],
        "estimator": summary["estimator"],
        **summary["sampling"],
        "num_evaluations": summary["num_evaluations"],
        "seed": summary["seed"],
        "precision": summary["precision"],
        "checkpoint_family": checkpoint["family"],
        "checkpoint_sha256": checkpoint["sha256"],
        "data_sha256": data["sha256"],
        "ddpmbench": version,
    }
    # The half width and the number of network evaluations cover estimator and target.
    left_out = {"horvitz_thompson", "half_width_goal", "max_evaluations"}
    return {n: value for n, value in facts.items() if n not in left_out and value is not None}
