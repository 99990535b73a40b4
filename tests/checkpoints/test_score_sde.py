"""Training states of yang-song/score_sde_pytorch against outputs of its own networks."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from peers import random_model, refused, same_weights
from score_sde_files import CASES, DDPM_BLOCKS, parameters, recorded, training_state
from unet_configs import SMALL_CONFIG

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.flags import CONFIGURATIONS, parse_config
from ddpmbench.checkpoints.native import write_native
from ddpmbench.checkpoints.settings import MissingSettingsError
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.unet.unet import UNet, UNetConfig

SETTINGS = {case: CheckpointSettings(model_flags=flags) for case, flags in CASES.items()}


def saved(folder, content, name="checkpoint_8.pth"):
    torch.save(content, folder / name)
    return folder / name


def noise_at(checkpoint, case):
    """The noise that a checkpoint predicts at the recorded x_t and timesteps."""
    record, schedule = recorded(case), checkpoint.schedule
    steps = torch.from_numpy(record["steps"]).long()
    x_t = torch.from_numpy(record["x_t"]).double()
    if schedule.process is Process.VE:
        x_t = 2 * x_t - 1  # images in [-1, 1]
    x_t = x_t / schedule.log_scale.exp()[steps - 1][:, None, None, None]
    with torch.no_grad():
        output = checkpoint.model_output(x_t, steps)
        return checkpoint.diffusion.p_mean_variance(output.double(), x_t, steps).pred_eps


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """The checkpoint of a case."""

    @functools.cache
    def of(case):
        path = saved(tmp_path_factory.mktemp(case), training_state(case))
        return load_checkpoint(path, SETTINGS[case])

    return of


@pytest.mark.parametrize("case", CASES)
def test_the_score_is_that_of_the_project_s_own_network(case, read):
    record, checkpoint = recorded(case), read(case)
    noise = record["noise"]
    assert np.abs(noise_at(checkpoint, case).numpy() - noise).max() < 1e-5 * np.abs(noise).max()
    assert (checkpoint.family, checkpoint.weights) == ("score_sde", "ema")
    assert (checkpoint.clip, checkpoint.variance) == (False, Variance.FIXED_LARGE)
    # the last weights are others, and are read where they are asked for
    raw = load_checkpoint(checkpoint.source, dataclasses.replace(SETTINGS[case], weights="raw"))
    assert np.abs(noise_at(raw, case).numpy() - noise).max() > 1e-2 * np.abs(noise).max()


@pytest.mark.parametrize("case", CASES)
def test_the_process_is_that_of_the_project(case, read):
    record, schedule = recorded(case), read(case).schedule
    at = torch.from_numpy(record["steps"]).long() - 1
    scale = schedule.log_scale.exp()[at]
    mean = scale * schedule.alphas_cumprod[at].sqrt()
    std = scale * schedule.one_minus_alphas_cumprod[at].sqrt()
    doubled = 2 if schedule.process is Process.VE else 1
    np.testing.assert_allclose(mean, record["mean_coefficient"], rtol=1e-5)
    np.testing.assert_allclose(std, doubled * record["std"], rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "process", "time_input", "prediction", "steps"),
    [
        ("vp_ddpm", Process.VP, TimeInput.INDEX, Prediction.EPSILON, 1000),
        ("vp_ddpm_pool_continuous", Process.VP, TimeInput.ONE_BASED, Prediction.EPSILON, 999),
        ("subvp_ddpmpp", Process.SUB_VP, TimeInput.ONE_BASED, Prediction.EPSILON, 999),
        ("ve_ddpm", Process.VE, TimeInput.REVERSED_INDEX, Prediction.EPSILON, 1000),
        ("ve_ddpm_unscaled", Process.VE, TimeInput.REVERSED_INDEX, Prediction.SCORE, 1000),
    ],
)
def test_what_the_flags_say(case, process, time_input, prediction, steps, read):
    checkpoint = read(case)
    schedule = checkpoint.schedule
    assert (schedule.process, schedule.num_timesteps) == (process, steps)
    assert (checkpoint.time_input, checkpoint.prediction) == (time_input, prediction)


def test_the_linear_schedule_is_that_of_ho_et_al(read):
    assert torch.equal(read("vp_ddpm").schedule.betas, NoiseSchedule.linear(1000).betas)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_bare_state_dict_and_one_without_data_parallel(wrapped, tmp_path):
    state = training_state("vp_ddpm")
    model = {name.removeprefix("module."): value for name, value in state["model"].items()}
    content = {**state, "model": model} if wrapped else model
    checkpoint = load_checkpoint(saved(tmp_path, content), SETTINGS["vp_ddpm"])
    assert checkpoint.weights == ("ema" if wrapped else None)


# ---- the order of the averaged weights


def in_other_order(state, *places):
    """The state with averaged weights changed about: each place takes that of the next."""
    shadow = list(state["ema"]["shadow_params"])
    moved = [shadow[place] for place in (*places[1:], places[0])]
    for place, tensor in zip(places, moved, strict=True):
        shadow[place] = tensor
    return {**state, "ema": {**state["ema"], "shadow_params": shadow}}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("0.weight", "1.weight"), ("other order", "all_modules.0.weight would be [128, 128]")),
        (("8.NIN_0.W", "8.NIN_1.W"), ("in the place of module.all_modules.8.NIN_0.W",)),
        (("7.Conv_1.weight", "11.Conv_1.weight"), ("in another order",)),
        (("8.NIN_0.W", "8.NIN_1.W", "8.NIN_2.W"), ("in another order",)),
        (("3.GroupNorm_0.weight", "3.GroupNorm_1.weight"), ("in another order",)),
    ],
)
def test_averaged_weights_in_another_order_are_refused(names, words, tmp_path):
    state = training_state("vp_ddpm")
    every = list(parameters("vp_ddpm"))
    places = [every.index(f"module.all_modules.{name}") for name in names]
    path = saved(tmp_path, in_other_order(state, *places))
    with refused(path, "ema/shadow_params", "`weights=raw`", *words):
        load_checkpoint(path, SETTINGS["vp_ddpm"])
    raw = dataclasses.replace(SETTINGS["vp_ddpm"], weights="raw")
    assert load_checkpoint(path, raw).weights == "raw"


@pytest.mark.parametrize("change", ["short", "long", "dict", "sorted"])
def test_a_list_of_other_weights_is_refused(change, tmp_path):
    state = training_state("vp_ddpm")
    shadow = state["ema"]["shadow_params"]
    names = list(parameters("vp_ddpm"))
    state["ema"]["shadow_params"] = {
        "short": shadow[:-1],
        "long": [*shadow, shadow[-1]],
        "dict": dict(enumerate(shadow)),
        "sorted": [shadow[names.index(name)] for name in sorted(names)],
    }[change]
    path = saved(tmp_path, state)
    with refused(path, "ema/shadow_params", "`weights=raw`"):
        load_checkpoint(path, SETTINGS["vp_ddpm"])


@pytest.mark.parametrize("apart", [0.0, 0.6, 20.0])
def test_averaged_weights_in_their_order_are_read_however_far_apart(apart, tmp_path):
    state = training_state("vp_ddpm")
    generator = torch.Generator().manual_seed(1)
    state["model"] |= {
        name: weight + apart * weight.std() * torch.randn(weight.shape, generator=generator)
        for name, weight in parameters("vp_ddpm").items()
    }
    checkpoint = load_checkpoint(saved(tmp_path, state), SETTINGS["vp_ddpm"])
    assert checkpoint.weights == "ema"


def test_the_order_of_the_file_s_own_dict_does_not_matter(tmp_path):
    state = training_state("vp_ddpm")
    expected = load_checkpoint(saved(tmp_path, state), SETTINGS["vp_ddpm"])
    state["model"] = dict(sorted(state["model"].items()))
    assert same_weights(
        load_checkpoint(saved(tmp_path, state, "sorted.pth"), SETTINGS["vp_ddpm"]), expected
    )


# ---- what is asked for, and what is refused


def test_what_the_file_does_not_say_is_asked_for(tmp_path):
    path = saved(tmp_path, training_state("vp_ddpm"))
    with pytest.raises(MissingSettingsError, match="vp/ddpm/cifar10_continuous") as caught:
        load_checkpoint(path)
    assert (caught.value.family, set(caught.value.missing)) == ("score_sde", {"model_flags"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_published_configuration_says_all(name):
    config, notes = parse_config(name)
    assert parse_config(f"--config configs/{name}.py") == (config, notes) == (config, ())
    assert config.image_size == (32 if "cifar10" in name else 256)
    schedule, _ = config.process(torch.from_numpy(np.geomspace(50, 0.01, 1000)), "made")
    last = float(schedule.log_scale[-1].exp() * schedule.one_minus_alphas_cumprod[-1].sqrt())
    assert last == pytest.approx(100.0 if name.startswith("ve/") else 1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("ve/cifar10_ncsnpp_continuous", ("NCSN++", "`network=FILE.py:NAME`")),
        ("vp/ddpm/cifar", ("choose from vp/ddpm/cifar10",)),
        ("--config.training.sde=vpsde", ("add", "--config.model.name=")),
        ("--config.training.sde=edm", ("edm cannot be read, only vpsde",)),
        ("vp/ddpm/cifar10 --config.model.nf=128", ("no setting that the file leaves open",)),
        ("vp/ddpm/cifar10 --config.model.nonlinearity=elu", ("elu cannot be read, only swish",)),
        ("vp/ddpm/cifar10 --config.data.centered=False", ("not centered", "`network=")),
        ("subvp/cifar10_ddpm_continuous --config.training.continuous=False", ("sub-VP",)),
        ("ve/cifar10_ddpm --config.training.continuous=True", ("Fourier features",)),
        ("vp/ddpm/cifar10 --config.model.beta_max=nan", ("betas",)),
        ("'", ("quotation",)),
        (CASES["vp_ddpm"].replace("=ddpm", "=ncsnpp"), ("add --config.model.skip_rescale=",)),
    ],
)
def test_flags_that_are_refused(flags, words, tmp_path):
    path = saved(tmp_path, training_state("vp_ddpm"))
    with refused("`model_flags", *words):
        load_checkpoint(path, CheckpointSettings(model_flags=flags))


@pytest.mark.parametrize(
    ("case", "network", "flag"),
    [
        ("vp_ddpm", "ddpm", "--config.model.resblock_type=biggan"),
        ("subvp_ddpmpp", "ncsnpp", "--config.model.name=ddpm"),
    ],
)
def test_only_configurations_of_the_file_s_blocks_are_read(case, network, flag, tmp_path):
    path = saved(tmp_path, training_state(case))
    presets = {its_network: name for name, (_, _, its_network) in CONFIGURATIONS.items()}
    for its_network, name in presets.items():
        settings = CheckpointSettings(model_flags=name)
        if its_network == network:
            assert load_checkpoint(path, settings).family == "score_sde"
        else:
            with refused(path, "`model_flags`", flag, "but its blocks are"):
                load_checkpoint(path, settings)


@pytest.mark.parametrize(
    ("fir", "more", "words"),
    [
        (False, DDPM_BLOCKS, ["--config.model.resblock_type=ddpm", "its blocks are biggan"]),
        (None, "", ["--config.model.fir=False", "`network="]),
        (True, "", ["--config.model.fir=False", "`network="]),
    ],
)
def test_blocks_that_resample_are_of_one_kind(fir, more, words, tmp_path):
    path = saved(tmp_path, training_state("subvp_ddpmpp"))
    given = "" if fir is None else f" --config.model.fir={fir}"
    flags = CASES["subvp_ddpmpp"].replace(" --config.model.fir=False", given) + more
    with refused(path, *words):
        load_checkpoint(path, CheckpointSettings(model_flags=flags))


def put(state, **tensors):
    """The model's weights with others, under the numbers of the project."""
    given = {f"module.all_modules.{n.replace('__', '.')}": w for n, w in tensors.items()}
    return {"model": {**state["model"], **given}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"0__W": torch.randn(32)}, ("Fourier features", "`network=FILE.py:NAME`")),
        ({"99__Conv2d_0__weight": torch.ones(3, 3, 3, 3)}, ("FIR", "`network=FILE.py:NAME`")),
        ({"0__weight": torch.ones(32, 3, 3, 3)}, ("no time input", "`network=")),
        ({"30__weight": torch.ones(3)}, ("progressive", "`network=")),
        ({"8__NIN_0__W": torch.ones(3)}, ("NIN_0.W", "no such network")),
    ],
)
def test_networks_that_are_not_read(change, words, tmp_path):
    path = saved(tmp_path, put(training_state("vp_ddpm"), **change))
    with refused(path, *words):
        load_checkpoint(path, SETTINGS["vp_ddpm"])


def with_levels(change):
    return lambda model: {**model, "module.sigmas": change(model["module.sigmas"])}


def without(part):
    return lambda model: {name: weight for name, weight in model.items() if part not in name}


ONE_LEVEL = with_levels(lambda sigmas: sigmas[:1].clone())


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("ve_ddpm", without(".all_modules.5."), []),
        ("ve_ddpm", without("module.sigmas"), ["sigmas missing"]),
        ("ve_ddpm", with_levels(lambda sigmas: sigmas.flip(0)), ["no noise levels that fall"]),
        ("ve_ddpm", with_levels(lambda sigmas: torch.linspace(50, 0.01, 1000)), ["no geometric"]),
        *(
            (case, ONE_LEVEL, ["its sigmas are one noise level", "`network="])
            for case in ("vp_ddpm", "subvp_ddpmpp", "ve_ddpm")
        ),
    ],
)
def test_files_that_are_not_whole(case, change, words, tmp_path):
    path = saved(tmp_path, {"model": change(training_state(case)["model"])})
    with refused(path, *words):
        load_checkpoint(path, SETTINGS[case])


# ---- the settings of the U-Net that came with this family


def test_a_native_file_holds_the_network(read, tmp_path):
    checkpoint = read("subvp_ddpmpp")
    write_native(tmp_path / "model.safetensors", checkpoint)
    again = load_checkpoint(tmp_path / "model.safetensors")
    assert same_weights(again, checkpoint)
    assert torch.equal(noise_at(again, "subvp_ddpmpp"), noise_at(checkpoint, "subvp_ddpmpp"))


def test_the_settings_are_part_of_the_fingerprint_and_others_keep_theirs(tmp_path):
    path = saved(tmp_path, training_state("vp_ncsnpp_blocks"))
    flags = CASES["vp_ncsnpp_blocks"]
    one, other = (
        load_checkpoint(path, CheckpointSettings(model_flags=given))
        for given in (flags, flags.replace("skip_rescale=True", "skip_rescale=False"))
    )
    assert one.sha256 == other.sha256
    assert one.fingerprint != other.fingerprint
    assert "rescale" not in repr(SMALL_CONFIG)
    assert repr(SMALL_CONFIG).endswith("norm_eps=1e-06, dropout=0.0)")


def test_the_published_networks_have_the_size_that_the_paper_states():
    # Song et al. 2021, appendix H: DDPM++ 61.8 million parameters
    config = UNetConfig(
        in_channels=3,
        out_channels=3,
        model_channels=128,
        channels=(128, 256, 256, 256),
        num_blocks=4,
        attention=(False, True, False, False),
        resampling="projected",
        least_group=4,
        attend_once=True,
        rescale_sums=True,
    )
    with torch.device("meta"):
        total = sum(weight.numel() for weight in UNet(config).parameters())
    assert total / 1e6 == pytest.approx(61.8, abs=0.1)


def test_what_diffusers_cannot_express_is_refused(tmp_path):
    from ddpmbench.checkpoints.diffusers_writer import refuse_inexpressible

    changed = {"attend_once": True}, {"rescale_sums": True}, {"least_group": 4}
    for change in changed:
        model = random_model(dataclasses.replace(SMALL_CONFIG, **change))
        model = dataclasses.replace(model, time_input=TimeInput.INDEX)
        with refused("diffusers has no network in the form of Song et al."):
            refuse_inexpressible(copy.copy(model))
