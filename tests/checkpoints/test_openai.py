"""State dicts of improved-diffusion and guided-diffusion, and the flags they need."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from peers import OPENAI_FLAGS, SHARED, needs_shared, openai_weights, refused, same_weights

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.flags import MODELS, parse_config, parse_flags
from ddpmbench.checkpoints.openai import network_config, read_shapes
from ddpmbench.checkpoints.settings import MissingSettingsError
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.unet.unet import UNet


def saved(folder, **shapes):
    torch.save(openai_weights(**shapes), folder / "model.pt")
    return folder / "model.pt"


@pytest.fixture
def path(tmp_path):
    return saved(tmp_path)


def read(path, *flags):
    return load_checkpoint(path, CheckpointSettings(model_flags=" ".join([OPENAI_FLAGS, *flags])))


def output(checkpoint, labels=None):
    x_t = torch.linspace(-1, 1, 3 * 64).view(1, 3, 8, 8)
    with torch.no_grad():
        return checkpoint.network(x_t, torch.tensor([5.0]), labels)


@needs_shared
@pytest.mark.parametrize("project", ["improved", "guided"])
def test_recorded_outputs_of_the_projects_own_code(project):
    recorded = np.load(SHARED / f"{project}_diffusion_tiny_io.npz")
    path = SHARED / f"{project}_diffusion_tiny.pt"
    checkpoint = load_checkpoint(path, CheckpointSettings(model_flags=str(recorded["flags"])))
    x_t, t = torch.from_numpy(recorded["x_t"]), torch.from_numpy(recorded["t"])
    time = checkpoint.network_time(t + 1)
    with torch.no_grad():
        together = checkpoint.network(x_t, time)
        singles = [checkpoint.network(x_t[i : i + 1], time[i : i + 1]) for i in range(len(t))]
    scale = np.abs(recorded["output"]).max()
    assert np.abs(together.numpy() - recorded["output"]).max() < 1e-5 * scale
    assert np.abs(torch.cat(singles).numpy() - recorded["output"]).max() < 1e-5 * scale
    assert checkpoint.variance is Variance.LEARNED_RANGE
    assert checkpoint.image_size == 32


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_flags_of_a_published_file_make_a_network_of_the_size_in_its_name(name, tmp_path):
    flags = parse_flags(name)
    attended = tuple(
        flags.image_size >> level in flags.attention_resolutions
        for level in range(len(flags.multiples))
    )
    weights = openai_weights(
        flags.num_channels,
        [int(multiple) for multiple in flags.multiples],
        flags.num_res_blocks,
        attended,
        learn_sigma=flags.learn_sigma,
        classes=1000 if flags.class_cond else 0,
        scale_shift=flags.use_scale_shift_norm,
        device="meta",
    )
    config = network_config(flags, read_shapes(weights, tmp_path), tmp_path)
    with torch.device("meta"):
        assert len(UNet(config).state_dict()) == len(weights)
    total = sum(weight.numel() for weight in weights.values())
    millions = {"cifar10": 50, "imagenet64_uncond": 100, "imagenet64_cond": 270, "lsun": 100}
    expected = next(value for start, value in millions.items() if name.startswith(start))
    assert total / 1e6 == pytest.approx(expected, rel=0.25)


def test_a_published_name_takes_its_flags(path, monkeypatch, tmp_path):
    name = "cifar10_uncond_50M_500K"
    monkeypatch.setitem(MODELS, name, OPENAI_FLAGS)
    published = path.rename(tmp_path / f"{name}.pt")
    by_itself = load_checkpoint(published)
    assert any(name in note for note in by_itself.notes)
    by_name = load_checkpoint(published, CheckpointSettings(model_flags=name))
    assert same_weights(by_itself, by_name)
    # flags given come before those of the name
    steps = read(published, "--diffusion_steps 100 --rescale_timesteps False")
    assert steps.schedule.num_timesteps == 100


@pytest.mark.parametrize("heads", ["--num_heads 4", "--num_head_channels 16"])
def test_both_orders_of_the_attention_rows(path, heads):
    legacy, same_rows = read(path, heads), read(path, heads, "--use_new_attention_order True")
    assert (output(legacy) - output(same_rows)).abs().max() > 1e-3
    weights = torch.load(path, weights_only=True)
    for name, rows in weights.items():
        if ".qkv." in name:
            width = len(rows) // 12
            order = [
                head * 3 * width + part * width + row
                for part in range(3)
                for head in range(4)
                for row in range(width)
            ]
            weights[name] = rows[order]
    torch.save(weights, path)
    assert same_weights(legacy, read(path, heads, "--use_new_attention_order True"))


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"classes": 7, "scale_shift": False},
        {"updown": True},
        {"attended": (False, False), "learn_sigma": False},
        {"multiples": (1, 2, 3), "attended": (True, False, True), "num_res_blocks": 2},
    ],
)
def test_a_file_without_flags_says_what_its_weights_say(tmp_path, shapes):
    path = saved(tmp_path, **shapes)
    with pytest.raises(MissingSettingsError) as caught:
        load_checkpoint(path)
    assert (caught.value.family, caught.value.path) == ("openai", path)
    assert set(caught.value.weights) == set(openai_weights(**shapes))
    assert all(words in str(caught.value) for words in ("--num_heads", "--num_channels 32"))
    # what it proposes, placeholders and all, is a command that reads the file
    assert set(caught.value.missing) == {"model_flags"}
    flags = caught.value.missing["model_flags"]
    assert f"pass `model_flags='{flags}'`" in str(caught.value)  # in quotes, for a shell
    assert "--use_new_attention_order " in flags  # which no weight tells
    checkpoint = load_checkpoint(path, CheckpointSettings(model_flags=flags))
    assert checkpoint.num_classes == shapes.get("classes", 0)


@pytest.mark.parametrize(
    ("shapes", "flags"),
    [
        ({"classes": 7}, "--class_cond True"),
        ({"classes": 7}, "--class_cond yes --use_scale_shift_norm T --resblock_updown=n"),
        ({"scale_shift": False}, "--use_scale_shift_norm=False"),
        ({"updown": True}, "--resblock_updown True"),
        ({"images": 1}, ""),
        ({"learn_sigma": False}, "--learn_sigma False"),
        ({"num_res_blocks": 2}, "--num_res_blocks 2"),
        ({"attended": (True, True)}, "--attention_resolutions 4,8"),
        ({"attended": (False, False)}, "--attention_resolutions 2"),
        ({"multiples": (1,), "attended": (True,)}, "--channel_mult 1 --attention_resolutions 8"),
    ],
)
def test_shapes_and_flags_agree_on_a_network(tmp_path, shapes, flags):
    checkpoint = read(saved(tmp_path, **shapes), flags)
    assert checkpoint.channels == shapes.get("images", 3)
    assert checkpoint.num_classes == shapes.get("classes", 0)
    learned = shapes.get("learn_sigma", True)
    assert checkpoint.variance is (Variance.LEARNED_RANGE if learned else Variance.FIXED_LARGE)


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        ("--num_channels 64", "32"),
        ("--num_res_blocks 2", "1"),
        ("--channel_mult 1,3", "1,2"),
        ("--learn_sigma False", "True"),
        ("--class_cond True", "False"),
        ("--use_scale_shift_norm False", "True"),
        ("--resblock_updown True", "False"),
        ("--attention_resolutions 8", "4"),
    ],
)
def test_flags_that_contradict_the_weights(path, flag, found):
    with refused(path, f"has {flag}", f"the weights say {found}"):
        read(path, flag)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (OPENAI_FLAGS.replace("--learn_sigma True", ""), "leaves the default --learn_sigma False"),
        (
            "--image_size 64 --num_channels 32 --num_res_blocks 1 --learn_sigma True",
            "leaves the default --channel_mult 1,2,3,4, the weights say 1,2",
        ),
    ],
)
def test_a_default_that_contradicts_the_weights(path, flags, words):
    with refused(path, words):
        load_checkpoint(path, CheckpointSettings(model_flags=flags))


def test_process_flags(path):
    flags = "--diffusion_steps 400 --noise_schedule cosine --rescale_timesteps True"
    checkpoint = read(path, flags, "--predict_xstart True --clip_denoised False")
    assert checkpoint.prediction is Prediction.X_START
    assert not checkpoint.clip
    assert checkpoint.schedule.name == "cosine"
    assert checkpoint.time_input is TimeInput.RESCALED_1000
    times = checkpoint.network_time(torch.tensor([1, 2, 400]))
    assert times.tolist() == [0.0, 2.5, 997.5]
    respaced = read(path, flags, "--timestep_respacing 50")
    assert respaced.schedule.num_timesteps == 50
    assert respaced.network_time(torch.tensor([50])).tolist() == [997.5]


@pytest.mark.parametrize("respacing", ["10,8,4", "5,5", "1,1,1,1", "14,13,13", "40"])
def test_sections_are_those_of_the_source(respacing):
    schedule = parse_flags(f"--diffusion_steps 40 --timestep_respacing {respacing}").schedule
    expected = spaced_timesteps(40, [int(count) for count in respacing.split(",")])
    assert schedule.original_timesteps.tolist() == [1 + index for index in sorted(expected)]


def spaced_timesteps(num_timesteps, section_counts):
    """As guided-diffusion's space_timesteps has them, from 0 on."""
    size_per, extra = divmod(num_timesteps, len(section_counts))
    start, steps = 0, set()
    for i, count in enumerate(section_counts):
        size = size_per + (1 if i < extra else 0)
        stride = 1 if count <= 1 else (size - 1) / (count - 1)
        position = 0.0
        for _ in range(count):
            steps.add(start + round(position))
            position += stride
        start += size
    return steps


@pytest.mark.parametrize(
    ("flags", "variance"),
    [("", Variance.FIXED_LARGE), ("--sigma_small True", Variance.FIXED_SMALL)],
)
def test_fixed_variances(flags, variance):
    assert parse_flags(f"--image_size 32 {flags}").variance is variance


def test_numbers_are_read_as_the_projects_read_them():
    flags = parse_flags("--num_channels 064 --class_cond 1 --channel_mult 1,.5")
    assert (flags.num_channels, flags.class_cond) == (64, True)
    assert flags.channel_mult == (1, Fraction(1, 2))
    words = "vp/ddpm/cifar10 --config.model.beta_min={} --config.model.beta_max=+2e1"
    assert parse_config(words.format(".1")) == parse_config(words.format("0.10"))


@pytest.mark.parametrize(
    ("flags", "rescales"),
    [
        ("--image_size 32", True),
        ("--image_size 128", False),
        ("--sigma_small True", True),
        ("--num_head_channels 64", False),
        ("--rescale_timesteps False --sigma_small True", False),
        ("--diffusion_steps 1000", False),
    ],
)
def test_which_project_decides_whether_time_is_rescaled(flags, rescales):
    parsed = parse_flags(f"--diffusion_steps 4000 {flags}")
    assert parsed.rescales(resblock_updown=False) is rescales


def test_a_default_that_the_project_decides_is_noted(path):
    checkpoint = read(path, "--diffusion_steps 4000")
    assert checkpoint.time_input is TimeInput.INDEX
    assert any("--rescale_timesteps False" in note for note in checkpoint.notes)


def test_a_project_that_cannot_be_told():
    flags = parse_flags("--image_size 64 --diffusion_steps 4000")
    with refused("`model_flags`", "--rescale_timesteps"):
        flags.rescales(resblock_updown=False)
    assert flags.rescales(resblock_updown=True) is False


def test_flags_of_training_are_ignored_and_noted(path):
    checkpoint = read(path, "--lr 1e-4 --batch_size 128 --dropout 0.3 --use_kl True")
    assert any("--lr, --batch_size, --dropout, --use_kl" in n for n in checkpoint.notes)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--num_chanels 32", "--num_chanels"),
        ("--num_channels", "--num_channels: expected one argument"),
        ("--num_channels --lr 1", "--num_channels: expected one argument"),
        ("--num_channels many", "--num_channels: many cannot be read (Expected int"),
        ("--num_channels 0", "--num_channels"),
        ("--num_channels 32.0", "--num_channels: 32.0 cannot be read (Expected int"),
        ("--learn_sigma maybe", "--learn_sigma: maybe"),
        ("--noise_schedule sqrt", "--noise_schedule: sqrt cannot be read, only linear, cosine"),
        ("--channel_mult 1,2/0", "--channel_mult: 1,2/0 cannot be read"),
        (f"--num_heads {10**30}", "--num_heads: 1"),
        ("--attention_resolutions 0", "--attention_resolutions: 0"),
        ("--image_size 32 stray", "stray"),
        ("--large_size 256", "--large_size"),
        ("cifar11", "cifar10_uncond_50M_500K"),
        ('--image_size "32', "quotation"),
        ("--image_size 28", "--channel_mult"),
        ("--timestep_respacing ddim50", "pass `timesteps=50`, to sample and fid"),
        ("--timestep_respacing 10,many", "--timestep_respacing 10,many"),
        ("--timestep_respacing 10,0", "section 2 of 2 has 500 steps, not 0"),
        ("--timestep_respacing 5000", "--timestep_respacing 5000"),
        ("--num_heads_upsample 2", "--num_heads_upsample 2"),
        ("--num_heads 5", "--num_heads 5"),
        ("--num_head_channels 48", "--num_head_channels 48"),
    ],
)
def test_flags_that_cannot_be_read(path, flags, word):
    alone = flags.startswith(("cifar11", "--image_size 28"))
    with refused("`model_flags", word):
        load_checkpoint(
            path, CheckpointSettings(model_flags=flags if alone else f"{OPENAI_FLAGS} {flags}")
        )
