"""Every command, script, manifest and count of the documents holds."""

import os
import re
import subprocess

import pytest
import yaml
from documents import ROOT, blocks, check, commands, torchrun_options, torchrun_variables

from ddpmbench.likelihood.designs import PilotDesign, num_terms

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    import counts

    patch.syspath_prepend(str(ROOT / "docs"))
    import map as map_of_packages

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "results").rglob("*.md")),
]
COMMANDS = [words for path in DOCUMENTS for words in commands(path.read_text())]
OTHERS = ("pip", "tox")
"""Commands of other programs."""
SCALING = (ROOT / "docs" / "guides" / "many_processes.md").read_text()
SPEED = (ROOT / "docs" / "explanation" / "speed.md").read_text()

BATCH_OPTIONS = {
    "job-name",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "gpus-per-node",
    "gpus-per-task",
    "cpus-per-task",
    "time",
    "requeue",
    "array",
}
"""Of sbatch; its manual."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_parses(words):
    assert check(words) != (words[0] in OTHERS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("https://") or document.parent.joinpath(target).exists(), target


# ---- Slurm


@pytest.fixture
def started(tmp_path):
    """Runs a batch script as Slurm would, with an srun that says what it is to start."""
    for name, lines in {
        "srun": 'printf "%s\\n" "$@" > "$TOLD"',
        "scontrol": 'test "$*" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"',
    }.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{lines}\n")
        path.chmod(0o755)
    (tmp_path / "checkpoints.txt").write_text("one.pt\ntwo words.pt\nthree.pt\n")

    def run(script, **variables):
        given = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TOLD": str(tmp_path / "told"),
            **variables,
        }
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=given, check=True
        )
        return (tmp_path / "told").read_text().splitlines()

    return run


def batch_options(script):
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script, re.MULTILINE)
    assert len(lines) == script.count("#SBATCH")
    return dict(lines)


def test_a_batch_script_starts_torchrun_on_every_node(started):
    script, _ = blocks(SCALING, "bash")
    options = batch_options(script)
    assert set(options) <= BATCH_OPTIONS
    told = started(
        script, SLURM_JOB_NODELIST="node[1-2]", SLURM_NNODES=options["nodes"], SLURM_JOB_ID="7"
    )
    assert told[0] == "--kill-on-bad-exit=1"
    assert check(told[1:])
    parsed = torchrun_options(told[2:])
    assert parsed.nnodes == options["nodes"]
    assert parsed.nproc_per_node == options["gpus-per-node"]
    assert (parsed.rdzv_endpoint, parsed.rdzv_id) == ("node1:29500", "7")
    assert options["ntasks-per-node"] == "1"
    assert "--out" in parsed.training_script_args


def test_an_array_takes_a_line_each(started):
    _, script = blocks(SCALING, "bash")
    options = batch_options(script)
    assert set(options) <= BATCH_OPTIONS
    first, last, _ = map(int, re.split("[-%]", options["array"]))
    assert (first, last) == (1, 100)
    told = started(script, SLURM_ARRAY_TASK_ID="2")
    assert check(told)
    assert told[told.index("--ckpt") + 1] == "two words.pt"
    assert told[told.index("--out") + 1] == "runs/checkpoint-2"


# ---- Kubernetes


MANIFESTS = [list(yaml.safe_load_all(block)) for block in blocks(SCALING, "yaml")]


def pod(manifest):
    return manifest["spec"]["template"]["spec"]


def plain_environment(container):
    return {of["name"]: of["value"] for of in container["env"] if "value" in of}


def check_volumes(spec, out):
    (container,) = spec["containers"]
    mounted = {of["name"]: of["mountPath"] for of in container["volumeMounts"]}
    assert set(mounted) == {of["name"] for of in spec["volumes"]}
    places = [out, *(v for n, v in plain_environment(container).items() if n[:4] != "PET_")]
    assert all(any(place.startswith(f"{m}/") for m in mounted.values()) for place in places)


def test_an_indexed_job_is_one_run():
    service, job = MANIFESTS[0]
    name, spec, (container,) = job["metadata"]["name"], job["spec"], pod(job)["containers"]
    assert container["command"] == ["torchrun"]
    environment = plain_environment(container)
    named = {of["name"] for of in container["env"] if of["name"].startswith("PET_")}
    assert named <= torchrun_variables()
    parsed = torchrun_options(container["args"], {**environment, "PET_NODE_RANK": "1"})
    assert parsed.node_rank == 1
    assert int(parsed.nnodes) == spec["completions"] == spec["parallelism"]
    assert spec["completionMode"] == "Indexed"
    assert int(parsed.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert check(["torchrun", *container["args"]])
    # The pods of an indexed Job are named JOB-INDEX, in the domain of a Service without an address.
    assert parsed.master_addr == f"{name}-0.{pod(job)['subdomain']}"
    assert pod(job)["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    (rank,) = [of for of in container["env"] if of["name"] == "PET_NODE_RANK"]
    path = rank["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    check_volumes(pod(job), parsed.training_script_args[-1].removeprefix("--out="))


def test_the_operators_pods_are_processes_of_one_run():
    (job,) = MANIFESTS[1]
    kinds = job["spec"]["pytorchReplicaSpecs"]
    assert kinds["Master"]["replicas"] == 1
    assert kinds["Worker"]["template"] == kinds["Master"]["template"]
    spec = kinds["Master"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "pytorch"  # the operator asks for it
    words = [*container["command"], *container["args"]]
    assert check(words)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    check_volumes(spec, words[-1].removeprefix("--out="))
    code = (ROOT / "ddpmbench" / "execution" / "distributed.py").read_text()
    for name in ("WORLD_SIZE", "MASTER_ADDR"):
        assert name in code


def test_an_indexed_job_takes_a_line_each(tmp_path):
    (job,) = MANIFESTS[2]
    (container,) = pod(job)["containers"]
    assert container["command"] == ["bash", "-c"]
    (script,) = container["args"]
    path = tmp_path / "ddpmbench"
    path.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    (tmp_path / "checkpoints.txt").write_text("one.pt\ntwo words.pt\n")
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("/runs/", f"{tmp_path}/", 1)],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert check(["ddpmbench", *told])
    assert told[told.index("--ckpt") + 1] == "two words.pt"
    check_volumes(pod(job), told[told.index("--out") + 1])


# ---- numbers


def test_the_counts_are_those_that_are_counted():
    rows = re.findall(
        r"^\| (\S+) \| ([\d,]+) \| ([\d.]+) G \| (\d+) \| (\d+) MB \|$", SPEED, re.MULTILINE
    )
    found = {
        name: (f"{c.parameters:,}", f"{c.flop / 1e9:.3f}", str(c.launched), f"{c.moved / 1e6:.0f}")
        for name, c in counts.networks().items()
    }
    assert {name: tuple(of) for name, *of in rows} == found
    step = counts.diffusers_step()
    assert f"| {step.launched} | {step.read_back} |" in SPEED
    terms = counts.terms_counts()
    assert terms.read_back == 0
    assert f"{counts.noise_counts().launched} of its {terms.launched} operations" in SPEED


def test_the_floor_is_its_formula():
    (evaluations,) = re.findall(r"([\d,]+) evaluations per second", SPEED)
    flop = counts.networks()["ddpm-cifar10-32"].flop
    assert int(evaluations.replace(",", "")) == pytest.approx(400e12 / flop, rel=0.01)


def test_the_rows_are_those_of_the_formula():
    assert num_terms(10_000, 2) + len(PilotDesign(10_000, 1000, 0)) == 31_352
    assert "31,352 evaluations" in SCALING
    for num_images, num_replicates in ((10_000, 2), (1000, 5), (100, 4)):
        n, r = num_images, num_replicates
        assert num_terms(n, r) == n * (r + 1 + (r - 1) // 2) + min(n, max(64, -(-n // 10)))


def test_published_ratios_are_those_that_were_measured():
    """Each with its interval, as the table of the benchmarks has it."""
    shown = re.findall(r"\d\.\d\d \(\d\.\d\d to \d\.\d\d\)", SPEED)
    (table,) = (ROOT / "results" / "throughput").glob("*.md")
    measured = table.read_text()
    assert len(shown) >= 8
    assert [ratio for ratio in shown if ratio not in measured] == []


# ---- the map


def test_the_map_is_that_of_the_packages(tmp_path):
    """But for sizes, which every change changes."""

    def words(path):
        shown = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())
        return [text for text in shown if "modules," not in text]

    map_of_packages.draw(tmp_path / "map.svg")
    assert words(tmp_path / "map.svg") == words(ROOT / "docs" / "images" / "map.svg")
