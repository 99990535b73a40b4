"""`schedule`: each form is its constructor, and whatever is unclear is refused in one line."""

import warnings

import numpy as np
import pytest
import torch
from peers import refused

from ddpmbench.checkpoints import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

LINEAR = NoiseSchedule.linear(1000)
BETAS = LINEAR.betas
PRODUCTS = LINEAR.alphas_cumprod


@pytest.mark.parametrize(
    ("option", "schedule"),
    [
        ("linear:1000", LINEAR),
        ("linear:300:0.0002:0.03", NoiseSchedule.linear(300, beta_start=2e-4, beta_end=0.03)),
        ("linear:50:1e-4:2e-2", NoiseSchedule.linear(50, beta_start=1e-4, beta_end=0.02)),
        ("cosine:400", NoiseSchedule.cosine(400)),
        ("sigmoid:400", NoiseSchedule.sigmoid(400)),
        (
            "scaled-linear:9:0.001:0.1",
            NoiseSchedule.scaled_linear(9, beta_start=1e-3, beta_end=0.1),
        ),
        ("sqrt-linear:70:0.03", NoiseSchedule.sqrt_linear(70, beta_end=0.03)),
        (
            "sigmoid-betas:8:0.001:0.3",
            NoiseSchedule.sigmoid_betas(8, beta_start=1e-3, beta_end=0.3),
        ),
        ("geometric:8:0.001:0.3", NoiseSchedule.geometric(8, beta_start=1e-3, beta_end=0.3)),
        ("cosine-betas:8:0.001:0.3", NoiseSchedule.cosine_betas(8, beta_start=1e-3, beta_end=0.3)),
        ("const:9:0.02", NoiseSchedule.from_betas([0.02] * 9)),
        ("warmup10:30:1e-4:0.02", NoiseSchedule.warmup(30, share=0.1)),
        ("warmup50:30:1e-4:0.02", NoiseSchedule.warmup(30, share=0.5)),
        ("cosine:90:0:3", NoiseSchedule.cosine(90, offset=0.0, power=3.0)),
        (
            "sigmoid:90:0:4:0.9",
            NoiseSchedule.sigmoid(90, start=0.0, end=4.0, temperature=0.9),
        ),
        # as the code of Ho et al. and diffusers call them
        ("quad:9:0.001:0.1", NoiseSchedule.scaled_linear(9, beta_start=1e-3, beta_end=0.1)),
        ("scaled_linear:9:0.001:0.1", read_schedule("scaled-linear:9:0.001:0.1")),
        ("squaredcos_cap_v2:400", NoiseSchedule.cosine(400)),
    ],
)
def test_a_name_is_its_constructor(option, schedule):
    torch.testing.assert_close(read_schedule(option).betas, schedule.betas, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("", ["linear:1000", "buffers"]),
        ("linear", ["linear:1000"]),
        ("linear:", ["linear:1000"]),
        ("lineal:1000", ["lineal:1000", "cosine:T"]),
        ("linear:many", ["'many'"]),
        ("linear:1000.0", ["'1000.0'"]),
        ("linear:-5", ["'-5'"]),
        ("linear:1", ["'1'"]),
        ("linear:²", ["'²'"]),
        ("cosine:9999999", ["1,000,000"]),
        ("cosine:" + "9" * 40, ["1,000,000"]),
        ("linear:500", ["linear:500:0.0001:0.02", "linear:500:0.0002:0.04"]),
        ("linear:500:0.0001", ["its last beta", "linear:500:0.0001:0.02"]),
        ("linear:1000:0.0001", ["its last beta", "linear:1000:0.0001:0.02"]),
        ("linear:500:0.0001:0.02:0.3", ["one number too many", "take linear:500:0.0001:0.02"]),
        ("linear:1000:0.0001:0.02:9", ["one number too many", "take linear:1000:0.0001:0.02"]),
        ("geometric:9:0.01:0.1:2:3", ["2 numbers too many", "take geometric:9:0.01:0.1"]),
        ("const:9:0.01:0.1", ["one number too many", "take const:9:0.01"]),
        ("sqrt-linear:9:0.01:0.1", ["one number too many", "take sqrt-linear:9:0.01"]),
        ("cosine:9:0.008:2:1", ["one number too many", "take cosine:9:0.008:2"]),
        ("sigmoid:9:-3:3:1:1", ["one number too many", "take sigmoid:9:-3:3:1"]),
        ("linear:999999999", ["too many steps", "1,000,000"]),
        ("linear:1000001", ["too many steps", "1,000,000"]),
        ("buffers:1000001", ["too many steps", "1,000,000"]),
        *(
            (f"{name}:1000:0.02:0.0001", ["0.02, is above the last, 0.0001", "smaller one first"])
            for name in (
                *("linear", "scaled-linear", "quad", "geometric", "warmup10", "warmup50"),
                *("sigmoid-betas", "cosine-betas"),
            )
        ),
        ("const:100000:0.5", ["1e-30103", "smaller betas"]),
        ("geometric:100000:0.1:0.9", ["smaller betas"]),
        ("linear:500:a:0.02", ["'a'"]),
        ("linear:500:nan:0.02", ["nan", "between 0 and 1"]),
        ("linear:500:0.0001:2", ["between 0 and 1"]),
        ("cosine:500:0.008", ["cosine:500"]),
        ("sigmoid:500:1", ["sigmoid:500"]),
        ("scaled-linear:1000", ["0.00085"]),
        ("sqrt-linear:1000", ["sqrt-linear:1000:0.02"]),
        ("sigmoid-betas:1000", ["first and its last"]),
        ("geometric:50", ["geometric:50:0.0001:0.02"]),
        ("geometric:50:0:0.02", ["between 0 and 1"]),
        ("const:50", ["const:50:0.02"]),
        ("warmup10:50:0.1", ["warmup10:50:0.0001:0.02"]),
        ("cosine:50:1.5:2", ["cosine:50:0.008:2"]),
        ("sigmoid:50:3:-3:1", ["sigmoid:50:-3:3:1"]),
        ("sigmoid:50:-3:3:nan", ["sigmoid:50:-3:3:1"]),
        ("betas:nowhere.npy", ["No such file"]),
        ("betas:", ["name the file"]),
        ("alphas_cumprod:", ["name the file"]),
        ("buffers", ["no betas"]),
        ("buffers:x", ["buffers:x"]),
    ],
)
def test_what_is_no_schedule(option, words):
    with refused(f"`schedule={option}`", *words):
        read_schedule(option)


@pytest.mark.parametrize("suffix", ["npy", "npz", "txt", "csv"])
@pytest.mark.parametrize("name", ["betas", "alphas_cumprod"])
def test_a_file_is_its_numbers(tmp_path, name, suffix):
    values = {"betas": BETAS, "alphas_cumprod": PRODUCTS}[name].numpy()
    path = tmp_path / f"table.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    elif suffix == "npz":
        np.savez(path, **{name: values, "other": np.zeros(3)})
    else:
        path.write_text((" \n" if suffix == "txt" else ",").join(map(repr, values.tolist())))
    read = read_schedule(f"{name}:{path}")
    torch.testing.assert_close(read.alphas_cumprod, PRODUCTS, rtol=1e-12, atol=0)


def test_where_a_file_lies_is_no_part_of_its_schedule(tmp_path):
    np.save(tmp_path / "one.npy", BETAS.numpy())
    np.save(tmp_path / "other.npy", PRODUCTS.numpy())
    assert read_schedule(f"betas:{tmp_path / 'one.npy'}").name == "betas"
    assert read_schedule(f"alphas_cumprod:{tmp_path / 'other.npy'}").name == "alphas_cumprod"


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("betas", BETAS.flip(0), "reverse"),
        ("betas", 1 - BETAS, "alphas are 1 - beta"),
        ("betas", PRODUCTS, "alphas are 1 - beta"),
        ("betas", BETAS[None], "one row"),
        ("betas", BETAS[:1], "one row"),
        ("betas", BETAS * torch.nan, "finite"),
        ("betas", torch.cat([torch.zeros(1), BETAS]), "0, which is for no noise: leave it out"),
        ("betas", torch.cat([torch.zeros(2), BETAS]), "strictly between 0 and 1"),
        ("betas", BETAS * 100, "between 0 and 1"),
        ("alphas_cumprod", BETAS, "fall strictly"),
        ("alphas_cumprod", PRODUCTS.flip(0), "fall strictly"),
        ("alphas_cumprod", 1 - BETAS, "look like alphas"),
        ("alphas_cumprod", torch.cat([torch.ones(1), PRODUCTS]), "leave it out"),
        ("alphas_cumprod", (0.999 * PRODUCTS).round(decimals=3), "fall strictly"),
    ],
)
def test_tables_that_are_something_else(tmp_path, name, values, word):
    np.save(tmp_path / "table.npy", values.numpy())
    with refused(f"`schedule={name}:{tmp_path}", word):
        read_schedule(f"{name}:{tmp_path / 'table.npy'}")
    # beside the weights, an entry for t = 0 is left out
    if name == "alphas_cumprod" and values[0] != 1 and values[-1] > 0:
        with refused("the file's diffusion.alphas_cumprod", word):
            ScheduleTables.within({"diffusion.alphas_cumprod": values}).schedule()


def test_a_few_steps_are_no_advice_to_scale():
    with pytest.raises(InputError) as caught:
        read_schedule("linear:20")
    assert "scaled" not in str(caught.value)
    read_schedule("linear:21:" + ":".join(map(str, (0.1 / 21, 20 / 21))))  # the last that there is


def test_ends_that_are_equal_do_not_fall():
    for name in ("linear", "geometric", "warmup10", "cosine-betas"):
        betas = read_schedule(f"{name}:30:0.01:0.01").betas
        np.testing.assert_allclose(betas, 0.01, rtol=1e-12)
    assert read_schedule("const:30:1e-5").betas[0] == 1e-5


# ---- beside the weights


def read(**tensors):
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return read_schedule("buffers", ScheduleTables.within(named))


SINGLE = BETAS.float()
SINGLE_PRODUCTS = (1 - SINGLE).cumprod(0)


@pytest.mark.parametrize(
    "tensors",
    [
        {"betas": BETAS, "alphas_cumprod": PRODUCTS, "alphas": 1 - BETAS},
        {"diffusion__betas": SINGLE, "diffusion__alphas_cumprod": SINGLE_PRODUCTS},
        {"betas": SINGLE, "alpha": SINGLE_PRODUCTS, "alpha_bar": SINGLE_PRODUCTS},
        {"alpha_hat": PRODUCTS},
        {"beta": SINGLE, "model__norm__beta": torch.randn(64), "sqrt_alphas_cumprod": SINGLE},
        {"ema__betas": BETAS, "model__betas": BETAS},
        {"betas": SINGLE, "betas_of_what": torch.zeros(3)},
    ],
)
def test_buffers_are_found_and_agree(tensors):
    schedule = read(**tensors)
    torch.testing.assert_close(schedule.alphas_cumprod, PRODUCTS, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, ["no betas"]),
        ({"model__norm__beta": torch.randn(64)}, ["no betas"]),
        ({"alphas": 1 - BETAS}, ["alphas", "1 - beta to some", "alphas_cumprod:FILE"]),
        ({"alpha": PRODUCTS}, ["alpha", "1 - beta to some"]),
        ({"betas": BETAS, "alphas_cumprod": PRODUCTS.sqrt()}, ["betas and alphas_cumprod"]),
        ({"betas": BETAS, "alpha_bar": 1 - BETAS}, ["alpha_bar", "look like alphas"]),
        ({"a__betas": BETAS, "b__betas": BETAS / 2}, ["a.betas and b.betas"]),
        ({"betas": BETAS[:500], "alphas_cumprod": PRODUCTS}, ["contradict"]),
        ({"betas": BETAS.half()}, ["betas has 16 bits"]),
        ({"betas": (10 * BETAS).to(torch.float8_e5m2)}, ["betas has 8 bits"]),
        ({"betas": BETAS.to_sparse()}, ["no betas"]),
        ({"betas": BETAS.to("meta")}, ["no betas"]),
        ({"betas": torch.ones(1).mul(0.5).as_strided([10**12], [0])}, ["no betas"]),
        ({"betas": torch.ones(1).mul(0.5).as_strided([1000], [0])}, ["no betas"]),
        ({"betas": BETAS[:1].repeat(10**6 + 1)}, ["no betas"]),
        ({"betas": BETAS.to(torch.complex64)}, ["no betas"]),
    ],
)
def test_buffers_that_are_unclear(tensors, words):
    with refused("`schedule=buffers`", *words):
        read(**tensors)


def test_buffers_of_integers_for_floats_are_none():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # people have such files, though torch advises against it
        quantized = torch.quantize_per_tensor(SINGLE, 1e-4, 0, torch.quint8)
    with refused("`schedule=buffers`", "no betas"):
        read(betas=quantized)


# ---- of a checkpoint that says its own


def test_a_schedule_that_is_named_again_is_noted_where_it_differs(small_checkpoint):
    said = load_checkpoint(small_checkpoint)
    option = "linear:40:0.0025:0.5"
    same = load_checkpoint(small_checkpoint, CheckpointSettings(schedule=option))
    assert same.notes == ()
    assert same.fingerprint == said.fingerprint
    other = load_checkpoint(small_checkpoint, CheckpointSettings(schedule="cosine:60"))
    assert other.notes == ("`schedule`: cosine of 60 steps overrides linear of 40 steps",)
    assert other.schedule.num_original_timesteps == 60
    assert other.fingerprint != said.fingerprint


def test_a_time_that_is_named_again_is_noted_where_it_differs(small_checkpoint):
    assert load_checkpoint(small_checkpoint, CheckpointSettings(time_input="index")).notes == ()
    other = load_checkpoint(small_checkpoint, CheckpointSettings(time_input="one-based"))
    assert other.notes == ("`time_input=one-based` overrides index",)
    assert other.network_time(torch.tensor([1, 40])).tolist() == [1, 40]


def test_a_native_file_has_no_buffers(small_checkpoint):
    with refused(small_checkpoint, "leave out `schedule=buffers`"):
        load_checkpoint(small_checkpoint, CheckpointSettings(schedule="buffers"))
