"""What training code wraps weights in: the network comes out whole, or not at all."""

import collections
import re

import pytest
import torch
from documents import ROOT
from peers import OPENAI_FLAGS, openai_weights, pesser_weights, refused, same_weights
from safetensors.torch import save_file
from torch import nn
from unet_configs import SMALL_CONFIG

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints import state_dicts
from ddpmbench.checkpoints.ho_et_al import PUBLISHED
from ddpmbench.checkpoints.load import FAMILIES
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.unet.unet import UNet

OPENAI = {"model_flags": OPENAI_FLAGS}
PESSER = {"schedule": "linear:1000", "variance": "fixed_small"}
LAST = openai_weights()
AVERAGED = {name: 0.5 * weight for name, weight in LAST.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}


def under(prefix, weights):
    return {prefix + name: weight for name, weight in weights.items()}


def load(path, content, weights=None, **said):
    torch.save(content, path)
    return read(path, weights, **said)


def read(path, weights=None, **said):
    return load_checkpoint(path, CheckpointSettings(weights=weights, **(said or OPENAI)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.ckpt"


@pytest.fixture(scope="module")
def last(tmp_path_factory):
    return load(tmp_path_factory.mktemp("last") / "raw.pt", LAST)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    return load(tmp_path_factory.mktemp("averaged") / "averaged.pt", AVERAGED)


def flattened(weights):
    """As latent-diffusion's LitEma keeps them."""
    names = {f"model_ema.diffusion_model{name.replace('.', '')}": w for name, w in weights.items()}
    return {
        **names,
        "model_ema.decay": torch.tensor(0.99),
        "model_ema.num_updates": torch.tensor(3),
    }


ONE_SET = {
    "bare": LAST,
    "DataParallel": under("module.", LAST),
    "compiled": under("_orig_mod.module.", LAST),
    "Lightning": {"state_dict": under("model.", LAST), "epoch": 3, "optimizer_states": [OPTIMIZER]},
    "beside buffers": {"model": {**under("denoise_fn.", LAST), "loss_weight": torch.ones(9)}},
    "a training state": {"net": LAST, "opt": OPTIMIZER, "step": 10},
    "the same weights twice": {"model": LAST, "network": under("module.", LAST)},
    "the list of ermongroup/ddim": [under("module.", LAST), OPTIMIZER, 3, 100],
}


@pytest.mark.parametrize("name", ONE_SET)
def test_one_set_of_weights_comes_out_of_its_wrapping(name, path, last):
    read = load(path, ONE_SET[name])
    assert same_weights(read, last)
    assert (read.weights, read.part) == (None, "")
    with refused("`weights=ema`", path):
        load(path, ONE_SET[name], weights="ema")
    assert load(path, ONE_SET[name], weights="raw").weights == "raw"


def big_endian(weight):
    return weight.numpy().astype(weight.numpy().dtype.newbyteorder(">"))


SWAPPED = {
    "state_dict": under("model.", AVERAGED),
    "current_model_state": under("model.", LAST),
    "averaging_state": {"n_averaged": torch.tensor(5)},
}
BOTH_SETS = {
    "two dicts": ({"model": LAST, "ema": AVERAGED}, "ema"),
    "timm": ({"state_dict": LAST, "state_dict_ema": AVERAGED}, "state_dict_ema"),
    "two prefixes": ({**under("model.", LAST), **under("model_ema.", AVERAGED)}, "model_ema."),
    "Lightning": (
        {"state_dict": {**under("net.", LAST), **under("ema_net.module.", AVERAGED)}},
        "state_dict/ema_net.module.",
    ),
    "ema_pytorch": (
        {"ema": {**under("online_model.", LAST), **under("ema_model.", AVERAGED)}},
        "ema/ema_model.",
    ),
    "ema_pytorch and the model": (
        {"model": LAST, "ema": {**under("online_model.", LAST), **under("ema_model.", AVERAGED)}},
        "ema/ema_model.",
    ),
    "a shadow by name": (
        {"model": LAST, "EMAHelper": {"shadow": AVERAGED, "mu": 0.99}},
        "EMAHelper/shadow",
    ),
    "AveragedModel": (
        {"model": LAST, "mean": {"n_averaged": torch.tensor(3), **under("module.", AVERAGED)}},
        "mean/module.",
    ),
    "LitEma": (
        {"state_dict": {**under("model.diffusion_model.", LAST), **flattened(AVERAGED)}},
        "state_dict/model_ema.",
    ),
    "camel case": ({"netG": LAST, "netEMA": AVERAGED}, "netEMA"),
    "the list of ermongroup/ddim": ([under("module.", LAST), OPTIMIZER, 3, 9, AVERAGED], "ema"),
    "in a list": ({"model": LAST, "ema": [AVERAGED]}, "ema/0"),
    "in a tuple": ({"model": LAST, "ema": (AVERAGED, 0.999)}, "ema/0"),
    "deep": ({"model": LAST, "a": {"b": {"c": {"ema": [[AVERAGED]]}}}}, "a/b/c/ema/0/0"),
    "stochastic": ({"model": LAST, "swa_model": AVERAGED}, "swa_model"),
    "in words": ({"model": LAST, "average_model_state": AVERAGED}, "average_model_state"),
    "a class": ({"model": LAST, "EMAModel": AVERAGED}, "EMAModel"),
    "Lightning's WeightAveraging": (SWAPPED, "state_dict/model."),
    "one of them in a list": ({"epoch": [SWAPPED]}, "epoch/0/state_dict/model."),
    "arrays": ({"model": LAST, "ema": {n: big_endian(w) for n, w in AVERAGED.items()}}, "ema"),
}


@pytest.mark.parametrize("name", BOTH_SETS)
def test_averaged_weights_come_before_the_last_ones(name, path, last, averaged):
    content, where = BOTH_SETS[name]
    by_itself, raw = load(path, content), read(path, "raw")
    assert same_weights(by_itself, averaged)
    assert same_weights(raw, last)
    assert (by_itself.weights, raw.weights) == ("ema", "raw")
    assert f"weights: EMA ({where})" in by_itself.notes
    assert any(note.startswith("weights: raw (") for note in raw.notes)
    assert same_weights(read(path, "ema"), averaged)
    # a run of one of them does not go on with the other, though the file is the same
    assert by_itself.sha256 == raw.sha256
    assert by_itself.fingerprint != raw.fingerprint


def beside(weights, schedule):
    """As Lightning modules keep them: float32 tables beside the network."""
    return {
        **under("model.", weights),
        "betas": schedule.betas.float(),
        "loss_weight": torch.ones(9),
    }


def test_flags_that_contradict_the_tables_beside_the_weights_are_refused(path):
    content = beside(LAST, NoiseSchedule.cosine(1000))
    with refused(
        path, "linear", "`schedule=buffers`", "of 1,000 steps, with beta 0.999 at t = 1,000,"
    ):
        load(path, content)
    read = load(path, content, model_flags=f"{OPENAI_FLAGS} --noise_schedule cosine")
    assert torch.equal(read.schedule.betas, NoiseSchedule.cosine(1000).betas)
    assert any(note.startswith("weights: ") and "model." in note for note in read.notes)
    tables = load(path, content, model_flags=OPENAI_FLAGS, schedule="buffers")
    assert torch.allclose(tables.schedule.betas, NoiseSchedule.cosine(1000).betas, rtol=1e-6)
    assert "`schedule`: buffers of 1,000 steps overrides linear of 1,000 steps" in tables.notes
    linear = load(path, content, model_flags=OPENAI_FLAGS, schedule="linear:1000")
    assert torch.equal(linear.schedule.betas, NoiseSchedule.linear(1000).betas)


def test_a_schedule_in_tables_beside_the_weights_is_taken_where_nothing_says_another(path):
    weights = pesser_weights(UNet(SMALL_CONFIG))
    content = beside(weights, NoiseSchedule.cosine(40))
    with refused(path, "pass `variance=fixed_large`,"):
        load(path, content, prediction="eps")
    read = load(path, content, variance="fixed_small")
    assert torch.allclose(read.schedule.betas, NoiseSchedule.cosine(40).betas, rtol=1e-6)
    assert any("tables beside the weights" in note for note in read.notes)
    linear = load(path, content, **PESSER)
    assert torch.equal(linear.schedule.betas, NoiseSchedule.linear(1000).betas)
    assert any("not that of the tables in the file (the table betas" in n for n in linear.notes)
    same = load(path, content, schedule="cosine:40", variance="fixed_small")
    assert not any("tables" in note for note in same.notes)
    with refused(path, "holds no betas"):
        load(path, weights, variance="fixed_small", schedule="buffers")


BETAS = NoiseSchedule.linear(1000).betas
TABLES_AROUND = {
    "outer dict": lambda weights, betas: {"model": weights, "betas": betas},
    "another dict": lambda weights, betas: {"net": weights, "diffusion": {"betas": betas}},
    "deep": lambda weights, betas: {"a": {"b": {"state": weights}}, "tables": [{"betas": betas}]},
    "both copies": lambda weights, betas: {
        "model": {**under("net.", weights), "betas": betas},
        "ema": {**under("net.", weights), "betas": betas.float()},
    },
}


@pytest.mark.parametrize("around", TABLES_AROUND.values(), ids=TABLES_AROUND)
def test_tables_are_found_wherever_they_are_in_the_file(around, path):
    weights = pesser_weights(UNet(SMALL_CONFIG))
    said = {"variance": "fixed_small"}
    content = around(weights, BETAS[:500])
    for options in (said, {**said, "schedule": "buffers"}):
        read = load(path, content, **options)
        assert torch.allclose(read.schedule.betas, BETAS[:500], rtol=1e-6)
    assert any("tables in the file" in note for note in load(path, content, **PESSER).notes)
    with refused(path, "`model_flags` say the linear", "500 steps"):
        load(path, around(LAST, BETAS[:500]))
    assert load(path, around(LAST, BETAS)).schedule.num_timesteps == 1000


def test_tables_of_half_precision_do_not_contradict_what_is_right(path):
    content = {"state_dict": LAST, "betas": BETAS.half()}
    read = load(path, content, model_flags=OPENAI_FLAGS)
    assert torch.equal(read.schedule.betas, NoiseSchedule.linear(1000).betas)
    assert any(n.endswith("cannot be compared with the tables in the file") for n in read.notes)
    read = load(path, content, model_flags=OPENAI_FLAGS, schedule="linear:1000")
    assert any("`schedule=linear:1000` cannot be compared" in note for note in read.notes)
    assert not any("is not that of" in note for note in read.notes)


def test_tables_that_contradict_each_other_say_nothing_and_the_option_does(path):
    weights = pesser_weights(UNet(SMALL_CONFIG))
    content = {"model": weights, "betas": BETAS, "ema": {"betas": BETAS / 2}}
    for options in ({}, {"schedule": "buffers"}):
        with refused(path, "betas and ema.betas contradict each other"):
            load(path, content, variance="fixed_small", **options)
    with refused(path, "betas and ema.betas contradict each other", "correct the flags"):
        load(path, {**content, "model": LAST})
    read = load(path, content, **PESSER)
    assert torch.equal(read.schedule.betas, BETAS)
    assert any("contradict each other" in note for note in read.notes)


def test_flags_of_fewer_steps_are_compared_with_the_tables_of_all(path):
    respaced = {"model_flags": f"{OPENAI_FLAGS} --timestep_respacing 50"}
    read = load(path, {"model": LAST, "betas": BETAS.float()}, **respaced)
    assert read.schedule.num_timesteps == 50
    with refused(path, "correct the flags"):
        load(path, {"model": LAST, "betas": BETAS / 2}, **respaced)


def test_a_dict_that_holds_itself_is_gone_through_once(path):
    content = {"model": LAST, "betas": BETAS}
    content["self"] = content
    assert load(path, content).schedule.num_timesteps == 1000


def test_a_table_is_no_average_of_weights(path, last):
    content = {**under("model.", LAST), "ema.betas": BETAS.float()}
    assert same_weights(load(path, content), last)
    with refused(path, "averaged"):
        load(path, {**content, "ema.weight": torch.randn(9)})


@pytest.mark.parametrize("prefix", ["", "module.", "model.unet."])
def test_pesser_s_names_are_found_under_prefixes(prefix, path, tmp_path):
    weights = pesser_weights(UNet(SMALL_CONFIG))
    bare = load(tmp_path / "bare.ckpt", weights, **PESSER)
    content = {"state_dict": under(prefix, weights), "ema": under(prefix, weights)}
    read = load(path, content, **PESSER)
    assert same_weights(read, bare)
    assert (read.family, read.weights) == ("pesser", "ema")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"net_a": LAST, "net_b": AVERAGED}, ("net_a", "net_b", "several")),
        ({"ema_0.99": LAST, "ema_0.9999": AVERAGED}, ("ema_0.99", "ema_0.9999", "several")),
    ],
)
def test_which_of_several_is_meant_is_not_guessed(content, words, path):
    with refused(path, *words):
        load(path, content)


def test_a_file_of_averaged_weights_has_no_others(path):
    with refused("`weights=raw`", path, "averaged weights alone (ema)"):
        load(path, {"ema": AVERAGED}, weights="raw")


@pytest.mark.parametrize(
    ("name", "kind"), [("ema_0.9999_500000.pt", "ema"), ("model500000.pt", "raw")]
)
def test_the_names_of_the_projects_say_which_they_are(name, kind, tmp_path):
    torch.save(LAST, tmp_path / "ema_0.9999_500000.pt")
    torch.save(LAST, tmp_path / "model500000.pt")
    said = {"model_flags": OPENAI_FLAGS}
    assert load_checkpoint(tmp_path / name, CheckpointSettings(**said)).weights == kind
    same = load_checkpoint(tmp_path / name, CheckpointSettings(weights=kind, **said))
    assert same.weights == kind
    opposite = "raw" if kind == "ema" else "ema"
    with refused(f"`weights={opposite}`", tmp_path / name):
        load_checkpoint(tmp_path / name, CheckpointSettings(weights=opposite, **said))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ema_0.9999_500000.pt", "ema"),
        ("ema_off_ablation.pt", None),
        ("ema_cifar10.ckpt", "ema"),
        ("ema_celeba.ckpt", None),
        ("ema_diffusion_lsun_cat_model/model-1761000.ckpt", "ema"),
        ("ema_diffusion_celeba_model/model-20.ckpt", None),
        ("diffusion_celeba_model/model-20.ckpt", "raw"),
        ("diffusion_celeba_model/model000020.pt", "raw"),
        ("diffusion_celeba_model/model_ema.ckpt", None),
        ("diffusion_celeba_model/best.ckpt", None),
        ("diffusion_celeba_model.ckpt", None),
        ("diffusion_cifar10_model.ckpt", "raw"),
    ],
)
def test_only_names_of_the_projects_own_say_what_weights_are(name, kind, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    weights = pesser_weights(UNet(SMALL_CONFIG))
    assert load(path, weights, **PESSER).weights == kind
    # what wraps them says what they are, or nothing does
    assert load(path, {"model": weights, "optimizer": OPTIMIZER}, **PESSER).weights is None


def test_names_that_tell_a_family_tell_one():
    for group in (group for family in FAMILIES for group in family.names):
        assert sum(family.has(dict.fromkeys(group)) for family in FAMILIES) == 1


def test_the_reference_has_every_family():
    table = (ROOT / "docs" / "reference" / "checkpoints.md").read_text()
    for family in FAMILIES:
        assert re.search(rf"^\| {family.name}[ ,]", table, re.MULTILINE), family.name


def test_the_names_of_published_files_are_those_that_are_read():
    assert set(state_dicts.PESSER_NAMES) == set(PUBLISHED)


@pytest.mark.parametrize("save", [torch.save, save_file])
@pytest.mark.parametrize(
    "kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_rounded_weights_are_read_and_noted(kind, save, tmp_path, last):
    path = tmp_path / ("model.pt" if save is torch.save else "model.safetensors")
    rounded = {name: weight.to(kind) for name, weight in LAST.items()}
    save(rounded, path)
    read = load_checkpoint(path, CheckpointSettings(**OPENAI))
    (note,) = set(read.notes) - set(last.notes)
    assert str(kind).removeprefix("torch.") in note
    for name, weight in last.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], weight.to(kind).float())
    save({**rounded, "out.0.bias": (torch.nan * LAST["out.0.bias"]).to(kind)}, path)
    with refused("out.0.bias", "NaN"):
        load_checkpoint(path, CheckpointSettings(**OPENAI))


def test_a_file_that_says_it_all_itself_has_one_set_of_weights(small_checkpoint):
    with refused("`weights=raw`", small_checkpoint):
        load_checkpoint(small_checkpoint, CheckpointSettings(weights="raw"))


def test_torch_s_own_average_is_what_it_is_taken_for(path, last):
    """The layouts above are written by hand; this one is what torch writes."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            for name, weight in LAST.items():
                self.register_buffer(name.replace(".", "/"), weight)

    made = torch.optim.swa_utils.AveragedModel(Network())
    state = collections.OrderedDict(
        (name.replace("/", "."), weight) for name, weight in made.state_dict().items()
    )
    read = load(path, {"model": LAST, "swa": state})
    assert same_weights(read, last)
    assert read.weights == "ema"
