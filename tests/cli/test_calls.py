"""A command is a call: options become arguments, and what is printed is the text of the result."""

import ast
import dataclasses
import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from ddpmbench import cli
from ddpmbench.checkpoints.settings import CheckpointSettings
from ddpmbench.cli.main import ddpmbench
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import EightBit
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Variance
from ddpmbench.evaluate.speed import SpeedSettings
from ddpmbench.execution.devices import resolve_device
from ddpmbench.execution.samples import SampleSettings
from ddpmbench.metrics.scores import PROTOCOLS
from ddpmbench.samples.samplers import SamplerChoice
from ddpmbench.train.recipe import TrainingRecipe
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.unet.unet import UNetConfig

OUT, AUTO, TYPED = Path("o"), str(resolve_device("auto")), ["ddpmbench", "as", "typed"]
RESULT = SimpleNamespace(
    summary={"notes": ["`out` is new"]},
    folder=OUT,
    per_image="per image",
    likelihoods="likelihoods",
    curve="curve",
)

# ---- what is called where an option is left out

# fmt: off
_SAMPLES = {"out": OUT, "device": AUTO, "batch_size": None, "command": TYPED}
_RUN = _SAMPLES | {"seed": 0, "check": None}
_FLOW = _RUN | {
    0: "T = 40", 1: "images", "num_ode_images": 256, "dequantization": "decoder",
    "trace": "hutchinson", "probes": 1, "solver": "rk4", "solver_steps": 12, "half_width": None,
}
DEFAULTS = {
    "load_checkpoint": {0: "default", 1: CheckpointSettings()},
    "load_images": {
        0: "fashion-mnist:test", "num_images": None, "class_names": None, "convert": None,
        "pad": None, "on_bad": "fail",
    },
    "evaluate_nll": _RUN | {
        0: "T = 40", 1: "images", "estimator": "importance", "half_width": None, "draws": None,
        "max_evaluations": None, "terms_of": None, "decoder": "exact", "precision": "fp32",
    },
    "rate_distortion": {0: RESULT},
    "progressive_pictures": {
        0: "T = 40", 1: "images", 2: RESULT, "pictures": "decoding", "depth": None,
        "device": AUTO, "batch_size": None,
    },
    "evaluate_ode": _FLOW,
    "evaluate_likelihoods": _FLOW,
    "score_images": _RUN | {
        0: "T = 40", 1: "images", "evaluations_per_image": 64, "terms_of": None,
        "decoder": "exact",
    },
    "generate_samples": _SAMPLES | {
        0: "T = 40", 1: 64, "settings": SampleSettings(), "png": False,
    },
    "load_samples": {"on_bad": "fail", "convert": None},
    "load_reference": {
        0: "fashion-mnist:test", "num_images": None, "on_bad": "fail", "convert": None,
    },
    "load_feature_network": {
        0: "inception", "resize": PROTOCOLS["ddpm"].resize, "inception": None,
    },
    "FidSettings": {
        0: "network", 1: PROTOCOLS["ddpm"], 2: 50_000, 3: SampleSettings(), 4: None, 5: None,
    },
    "evaluate_fid": _SAMPLES | {0: "T = 40", 1: ["images"], 2: "settings"},
    "compare": {"out": OUT},
    "write_report": {},
    "compress": {
        0: "T = 40", 1: "images", 2: OUT, "timesteps": None, "run": None, "device": "auto",
        "code_variance": "best_constant", "block_images": 1024, "batch_size": 64,
        "verify": "first", "compare": True,
    },
    "codec_page": {0: RESULT.summary},
    "decompress": {
        0: Path("f"), 1: "T = 40", "block": None, "device": "auto",
    },
    "first_image": {0: Path("f"), 1: None},
    "write_images": {0: OUT, 1: "images", "first": 5},
    "inspect_checkpoint": {
        0: "default", 1: CheckpointSettings(), "timesteps": None, "image_size": None, "out": None,
    },
    "convert_checkpoint": {0: "T = 40", 1: OUT, "to": None, "overwrite": False},
    "measure_speed": {
        0: "T = 40", 1: None, "settings": SpeedSettings(), "out": None, "device": "auto",
        "batch_size": None, "command": TYPED,
    },
    "train": {
        0: TrainingRecipe(
            UNetConfig(
                in_channels=1, out_channels=1, model_channels=128, channels=(128, 256, 256),
                num_blocks=2, attention=(False, False, True), norm_groups=32, dropout=0.0,
            ),
            image_size=8,
        ),
        1: "images", 2: OUT, "steps": 100_000, "device": resolve_device("auto"),
    },
}

# ---- options that several commands share, and what they become

READING = (
    "--model-flags flags --network net.py:Net --weights raw --schedule cosine:9 --process ve "
    "--prediction v --variance learned --time-input sigma --data-range=-2,3 --levels 16 --no-clip"
)
SETTINGS = CheckpointSettings(
    model_flags="flags", network="net.py:Net", weights="raw", schedule="cosine:9", process="ve",
    prediction="v", variance="learned", time_input="sigma", data_range=(-2.0, 3.0), levels=16,
    clip=False,
)
CKPT = f"--ckpt c.pt {READING}"
OF_CKPT = ("load_checkpoint", {0: "c.pt", 1: SETTINGS})
PREPARING = "--convert gray --pad 9 --on-bad skip"
PREPARED = {"convert": "gray", "pad": 9, "on_bad": "skip"}
DATA = f"--data d --num-images 3 --class 1 --class-names a,b {PREPARING}"
OF_DATA = ("load_images", {0: "d", "num_images": 3, "class_names": ["a", "b"], **PREPARED})
INPUTS = f"{CKPT} --timesteps 5 {DATA}"
OPENED = {0: "T = 5", 1: "images of class 1"}
RUN = "--out o --batch-size 2 --device cpu --seed 7 --check"
OF_RUN = {"batch_size": 2, "device": "cpu", "seed": 7, "check": True}
TERMS = (
    "--estimator every-pair --half-width 0.1 --max-evaluations 9 --terms-of t --draws 3 "
    "--decoder tanh --precision bf16"
)
OF_TERMS = {
    "estimator": "every-pair", "half_width": 0.1, "max_evaluations": 9, "terms_of": Path("t"),
    "draws": 3, "decoder": "tanh", "precision": "bf16",
}
FLOW = (
    "--num-ode-images 3 --dequantization uniform --trace exact --probes 2 --solver heun "
    "--solver-steps 6 --half-width 0.1"
)
OF_FLOW = {
    "num_ode_images": 3, "dequantization": "uniform", "trace": "exact", "probes": 2,
    "solver": "heun", "solver_steps": 6, "half_width": 0.1,
}
SAMPLING = (
    f"{CKPT} --timesteps 5 --out o --batch-size 2 --device cpu --seed 7 --precision bf16 "
    "--image-size 8 --class 1 --sampler predictor-corrector --langevin-steps 2 --snr 0.3"
)
SAMPLED = SampleSettings(
    SamplerChoice("predictor-corrector", langevin_steps=2, snr=0.3), image_size=8, label=1,
    seed=7, precision=Precision.BF16,
)
TRAINING = (
    "--objective vlb --process sub-vp --variance learned_range --schedule cosine --timesteps 50 "
    "--channels 8,16 --model-channels 12 --num-blocks 1 --attention 0 --norm-groups 4 "
    "--dropout 0.1 --batch-size 3 --lr 0.01 --warmup-steps 4 --ema-decay 0.5 --horizontal-flip "
    "--precision bf16 --seed 7"
)
TRAINED = TrainingRecipe(
    UNetConfig(
        in_channels=1, out_channels=2, model_channels=12, channels=(8, 16), num_blocks=1,
        attention=(True, False), norm_groups=4, dropout=0.1,
    ),
    image_size=8, process="sub-vp", schedule="cosine", num_timesteps=50,
    variance=Variance.LEARNED_RANGE, objective="vlb", batch_size=3, learning_rate=0.01,
    warmup_steps=4, ema_decay=0.5, horizontal_flip=True, precision="bf16", seed=7,
)
SAMPLERS = {
    "--sampler ddim --eta 0.5": SamplerChoice("ddim", eta=0.5),
    "--sampler langevin --step-size 0.1": SamplerChoice("langevin", step_size=0.1),
    "--sampler ode --solver rk4 --solver-steps 7": SamplerChoice(
        "ode", solver="rk4", solver_steps=7
    ),
    "--added-noise none": SamplerChoice(added_noise="none"),
}

# ---- the commands

DEFAULT, GIVEN = [("load_checkpoint", {}), ("load_images", {})], [OF_CKPT, OF_DATA]
SCORED = [("load_checkpoint", {}), ("load_reference", {}), ("load_feature_network", {})]
CALLS = {
    "nll --out o": [*DEFAULT, ("evaluate_nll", {"continuous": None})],
    f"nll {INPUTS} {TERMS} {RUN} --continuous": [
        *GIVEN, ("evaluate_nll", OPENED | OF_TERMS | OF_RUN | {"continuous": True}),
    ],
    "nll --out o --timesteps continuous --no-check --batch-size auto": [
        *DEFAULT, ("evaluate_nll", {0: "T = continuous", "check": False, "continuous": None}),
    ],
    "rd --out o": [
        *DEFAULT, ("evaluate_nll", {}), ("rate_distortion", {}), ("progressive_pictures", {}),
    ],
    f"rd {INPUTS} {TERMS} {RUN} --pictures all --depth 3": [
        *GIVEN, ("evaluate_nll", OPENED | OF_TERMS | OF_RUN), ("rate_distortion", {}),
        ("progressive_pictures", OPENED | {
            "pictures": "all", "depth": 3, "device": "cpu", "batch_size": 2,
        }),
    ],
    "rd --run r": [("rate_distortion", {0: Path("r")})],
    "ode --out o": [*DEFAULT, ("evaluate_ode", {})],
    f"ode {INPUTS} {FLOW} {RUN}": [*GIVEN, ("evaluate_ode", OPENED | OF_FLOW | OF_RUN)],
    "likelihoods --out o": [*DEFAULT, ("evaluate_likelihoods", {})],
    f"likelihoods {INPUTS} {FLOW} {RUN}": [
        *GIVEN, ("evaluate_likelihoods", OPENED | OF_FLOW | OF_RUN),
    ],
    "score --out o": [*DEFAULT, ("score_images", {})],
    f"score {INPUTS} --data e --evaluations-per-image 8 --terms-of t --decoder tanh {RUN}": [
        *GIVEN, ("load_images", OF_DATA[1] | {0: "e"}),
        ("score_images", OPENED | OF_RUN | {
            2: "images of class 1", "evaluations_per_image": 8, "terms_of": Path("t"),
            "decoder": "tanh",
        }),
    ],
    "sample --out o": [("load_checkpoint", {}), ("generate_samples", {})],
    f"sample {SAMPLING} -n 9 --eight-bit truncate --png": [
        OF_CKPT,
        ("generate_samples", {
            0: "T = 5", 1: 9, "png": True, "batch_size": 2, "device": "cpu",
            "settings": dataclasses.replace(SAMPLED, eight_bit=EightBit.TRUNCATE),
        }),
    ],
    **{
        f"sample --out o {words}": [
            ("load_checkpoint", {}), ("generate_samples", {"settings": SampleSettings(choice)}),
        ]
        for words, choice in SAMPLERS.items()
    },
    "fid --out o": [*SCORED, ("FidSettings", {}), ("evaluate_fid", {})],
    f"fid {SAMPLING} --data d --data e --num-generated 9 --num-images 3 --protocol clean "
    "--feature-network n.pt --inception i.pt --convert rgb --on-bad skip --check": [
        OF_CKPT,
        *[
            ("load_reference", {0: name, "num_images": 3, "on_bad": "skip", "convert": "rgb"})
            for name in "de"
        ],
        ("load_feature_network", {0: "n.pt", "resize": "clean", "inception": Path("i.pt")}),
        ("FidSettings", {1: PROTOCOLS["clean"], 2: 9, 3: SAMPLED, 4: True}),
        ("evaluate_fid", {0: "T = 5", 1: ["images"] * 2, "batch_size": 2, "device": "cpu"}),
    ],
    "fid --samples s --data d --convert gray --out o": [
        ("load_samples", {0: "s", "convert": "gray"}),
        ("load_reference", {0: "d", "convert": "gray"}), ("load_feature_network", {}),
        ("FidSettings", {5: "made by"}), ("evaluate_fid", {0: "images"}),
    ],
    **{
        f"fid --out o {words}": [
            *SCORED, ("FidSettings", {3: SampleSettings(choice)}), ("evaluate_fid", {}),
        ]
        for words, choice in SAMPLERS.items()
    },
    "compare a b --out o": [("compare", {0: ("a", "b")})],
    "report r": [("write_report", {0: Path("r")})],
    "compress --out o": [*DEFAULT, ("compress", {})],
    f"compress {CKPT} {DATA} --out o --timesteps 5 --code-variance fixed_small --run r "
    "--block-images 6 --batch-size 2 --verify all --no-compare --device cpu --page p.html": [
        *GIVEN,
        ("compress", {
            1: "images of class 1", "timesteps": 5, "code_variance": "fixed_small",
            "run": Path("r"), "block_images": 6, "batch_size": 2, "verify": "all",
            "compare": False, "device": "cpu",
        }),
        ("codec_page", {}),
    ],
    "decompress f --out o": [
        ("load_checkpoint", {}), ("decompress", {}), ("first_image", {}), ("write_images", {}),
    ],
    f"decompress f {CKPT} --out o.npz --block 4 --device cpu": [
        OF_CKPT, ("decompress", {"block": 4, "device": "cpu"}), ("first_image", {1: 4}),
        ("write_images", {0: Path("o.npz")}),
    ],
    "inspect": [("inspect_checkpoint", {})],
    f"inspect c.pt {READING} --timesteps 5 --image-size 8 --out o": [
        ("inspect_checkpoint", {
            0: "c.pt", 1: SETTINGS, "timesteps": 5, "image_size": 8, "out": OUT,
        }),
    ],
    "convert c.pt o": [("load_checkpoint", {0: "c.pt"}), ("convert_checkpoint", {})],
    f"convert c.pt o {READING} --to diffusers --overwrite": [
        OF_CKPT, ("convert_checkpoint", {"to": "diffusers", "overwrite": True}),
    ],
    "speed": [("load_checkpoint", {}), ("measure_speed", {})],
    f"speed {CKPT} --timesteps 5 {PREPARING} --data d --num-images 3 --num-samples 4 "
    "--half-width 0.1 --image-size 8 --precision fp16 --precision tf32 --compile --out o "
    "--batch-size 2 --device cpu": [
        OF_CKPT, ("load_images", OF_DATA[1] | {"class_names": ...}),
        ("measure_speed", {
            0: "T = 5", 1: "images", "out": OUT, "batch_size": 2, "device": "cpu",
            "settings": SpeedSettings((Precision.FP16, Precision.TF32), True, 0.1, 3, 4, 8),
        }),
    ],
    "train --data d --out o": [("load_images", {0: "d", "class_names": ...}), ("train", {})],
    f"train --data d {PREPARING} --out o --steps 3 --device cpu {TRAINING}": [
        ("load_images", {0: "d", "class_names": ..., **PREPARED}),
        ("train", {0: TRAINED, "steps": 3, "device": resolve_device("cpu")}),
    ],
}
# fmt: on
PRINTED = {
    "nll": ("printed_nll",),
    "rd": ("printed_rate_distortion", RESULT.curve),
    "ode": ("printed_ode",),
    "likelihoods": ("printed_likelihoods", RESULT.likelihoods),
    "score": ("printed_scores", RESULT.per_image),
    "sample": ("printed_samples", OUT / "samples.npz"),
    "fid": ("printed_fid",),
    "compare": ("printed_comparison",),
    "compress": ("printed_codec",),
    "speed": ("printed_speed",),
    "inspect": ("printed_inspect",),
    "convert": ("printed_conversion",),
}
"""What prints the result of a command, and what it is given between the summary and the format."""


MODULES = {
    name.name: node.module
    for file in Path(cli.__path__[0]).glob("*.py")
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("ddpmbench.cli")
    for name in node.names
}
"""Where the commands find what they call."""


def plain(value):
    """An argument as the tables show it."""
    if isinstance(value, Checkpoint):
        schedule = value.schedule
        return f"T = {'continuous' if schedule.is_continuous else schedule.num_timesteps}"
    if isinstance(value, ImageSet):
        return "images" if value.labels is None else f"images of class {value.labels[0]}"
    return [plain(each) for each in value] if isinstance(value, list) else value


@pytest.fixture
def calls(small_model, small_images, tmp_path, monkeypatch):
    """What a command calls, in order; the functions are not called."""
    made = []
    model = dataclasses.replace(small_model, num_classes=2, notes=("`ckpt` is small",))
    images = dataclasses.replace(small_images, labels=None)
    results = {
        **{"load_checkpoint": model, "load_samples": (images, "made by"), "first_image": 5},
        **dict.fromkeys(("load_images", "load_reference", "decompress"), images),
        **{"load_feature_network": "network", "FidSettings": "settings", "codec_page": "a page"},
    }

    def stand_in(name):
        def call(*arguments, **options):
            given = {**dict(enumerate(arguments)), **options}
            made.append((name, {k: plain(v) for k, v in given.items() if not callable(v)}))
            return results.get(name, RESULT)

        return call

    stand_ins = {
        **{name: stand_in(name) for name in DEFAULTS},
        **{name: lambda *of, **how: " ".join(map(str, of)) for name, *_ in PRINTED.values()},
        "raw_pixels_warning": lambda summary: "`pictures`!",
        "resizes_inside": lambda name: True,
    }
    for module in {*MODULES.values()}:  # else a module imported meanwhile keeps the stand-ins
        importlib.import_module(module)
    for name, function in stand_ins.items():
        monkeypatch.setattr(f"{MODULES[name]}.{name}", function)
    monkeypatch.setattr(sys, "argv", ["-m", *TYPED[1:]])
    monkeypatch.chdir(tmp_path)
    return made


@pytest.mark.parametrize("words", CALLS)
def test_options_are_arguments(words, calls, completed):
    _, message = completed(*words.split())
    expected = [(name, DEFAULTS[name] | given) for name, given in CALLS[words]]
    assert calls == [
        (name, {k: v for k, v in given.items() if v is not ...}) for name, given in expected
    ]
    assert "`" not in message
    if CALLS[words][0][0] == "load_checkpoint":
        assert re.search(r"Note: (--ckpt|\[?CKPT\]?) is small\n", message)


@pytest.mark.parametrize("name", sorted(ddpmbench.commands.keys() - {"env"}))
def test_every_option_is_in_a_row(name):
    rows = [words.split() for words in CALLS if words.split()[0] == name]
    typed = {word.partition("=")[0] for words in rows for word in words}
    options = [o for o in ddpmbench.commands[name].params if isinstance(o, click.Option)]
    untried = [o.name for o in options if not typed & {*o.opts, *o.secondary_opts}]
    assert untried in ([], ["output_format"])


@pytest.mark.parametrize("command", PRINTED)
def test_the_text_of_the_result_is_what_is_printed(command, calls, completed):
    words = next(words for words in CALLS if words.split()[0] == command).split()
    options = {option.name: option for option in ddpmbench.commands[command].params}
    for form in options["output_format"].type.choices:
        printed, _ = completed(*words, "--format", form)
        of = (RESULT.summary, *PRINTED[command][1:], form)
        text = " ".join(map(str, of))
        if (command, form) == ("inspect", "table"):
            text = text.replace("`out`", "--out")
        assert printed == f"{text}\n"
