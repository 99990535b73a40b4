"""Tables beside the weights are known by what they satisfy, whatever their names and lengths."""

import warnings

import numpy as np
import pytest
import torch
from peers import refused

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints import schedule_tables
from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.settings import MissingSettingsError
from ddpmbench.diffusion.schedule import NoiseSchedule


def from_zero(total):
    """The T + 1 variances of minDiffusion, in float32."""
    return (0.02 - 1e-4) * torch.arange(total + 1, dtype=torch.float32) / total + 1e-4


def min_diffusion(total):
    """What minDiffusion registers, by its names."""
    beta_t = from_zero(total)
    alpha_t = 1 - beta_t
    alphabar_t = torch.cumsum(torch.log(alpha_t), dim=0).exp()
    return {
        "alpha_t": alpha_t,
        "oneover_sqrta": 1 / torch.sqrt(alpha_t),
        "sqrt_beta_t": torch.sqrt(beta_t),
        "alphabar_t": alphabar_t,
        "sqrtab": torch.sqrt(alphabar_t),
        "sqrtmab": torch.sqrt(1 - alphabar_t),
        "mab_over_sqrtmab": (1 - alpha_t) / torch.sqrt(1 - alphabar_t),
    }


def with_a_product_of_one(total):
    """Entry 0 of the products set to 1 after they were computed, as courses have it."""
    beta = from_zero(total)
    product = torch.cumsum((1 - beta).log(), dim=0).exp()
    product[0] = 1
    return {"b_t": beta, "a_t": 1 - beta, "ab_t": product}


def with_a_variance_of_zero(total):
    beta = torch.cat([torch.zeros(1), from_zero(total)[1:]])
    return {"beta_t": beta, "alpha_t": (1 - beta).cumprod(0)}


def with_variances_of_t_steps(total):
    beta = from_zero(total)[1:]
    return {"noise": beta, "kept": torch.cat([torch.ones(1), (1 - beta).cumprod(0)])}


def with_products_of_t_steps(total):
    beta = torch.cat([torch.zeros(1), from_zero(total)[1:]])
    return {"noise": beta, "kept": (1 - beta).cumprod(0)[1:]}


def read(tables, steps=None, option="buffers"):
    tables = {f"ddpm.{name}": table for name, table in tables.items()}
    found = ScheduleTables.within({**tables, **(steps or {})}, source="f.pt")
    return read_schedule(option, found.schedule)


def expected(total, *, includes_first):
    """alphas_cumprod of t = 1..T."""
    beta = from_zero(total).double()
    product = (1 - beta).cumprod(0)
    return product[1:] if includes_first else product[1:] / product[0]


OWN = """
from torch import nn

class Net(nn.Module):
    image_channels, image_size = 1, 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x) + t[:, None, None, None]
"""


def test_a_file_of_min_diffusion_has_its_chain_and_says_what_to_type(tmp_path):
    (tmp_path / "net.py").write_text(OWN)
    weights = {"conv.weight": torch.full((1, 1, 3, 3), 0.1), "conv.bias": torch.zeros(1)}
    torch.save(
        {"flat": {**weights, **min_diffusion(10), "n_T": torch.tensor(10)}}, tmp_path / "flat.pt"
    )
    torch.save({"net": weights, "args": {"timesteps": 200}}, tmp_path / "steps.pt")

    def load(file, schedule):
        said = {"prediction": "eps", "variance": "fixed_large", "time_input": "fraction"}
        settings = CheckpointSettings(f"{tmp_path / 'net.py'}:Net", schedule=schedule, **said)
        return load_checkpoint(tmp_path / file, settings)

    read = load("flat.pt", "buffers")
    torch.testing.assert_close(
        read.schedule.alphas_cumprod, expected(10, includes_first=True), rtol=1e-5, atol=0
    )
    assert any("the first for t = 0" in note for note in read.notes)
    np.save(tmp_path / "products.npy", read.schedule.alphas_cumprod.numpy())
    named = load("flat.pt", f"alphas_cumprod:{tmp_path / 'products.npy'}")
    assert not any("tables" in note or "the file says" in note for note in named.notes)
    other = load("flat.pt", "geometric:20:0.0001:0.02").notes
    assert any("has 20 steps, and the file says flat.n_T = 10" in note for note in other)
    for file, schedule in (("flat.pt", "buffers"), ("steps.pt", "linear:200:START:END")):
        with pytest.raises(MissingSettingsError) as info:
            load(file, None)
        assert info.value.missing["schedule"] == schedule


@pytest.mark.parametrize("total", [10, 100, 1000])
@pytest.mark.parametrize(
    ("tables", "includes_first"),
    [
        (min_diffusion, True),
        (with_a_product_of_one, True),
        (with_a_variance_of_zero, False),
        (with_variances_of_t_steps, False),
        (with_products_of_t_steps, False),
    ],
)
def test_an_entry_for_no_noise_is_not_a_step(tables, includes_first, total):
    found = ScheduleTables.within(tables(total), source="f.pt")
    schedule = read_schedule("buffers", found.schedule)
    products = expected(total, includes_first=includes_first)
    assert schedule.num_timesteps == total
    torch.testing.assert_close(schedule.alphas_cumprod, products, rtol=1e-4, atol=0)
    torch.testing.assert_close(schedule.one_minus_alphas_cumprod, 1 - products, rtol=2e-3, atol=0)
    assert found.names >= set(tables(total)) - {"mab_over_sqrtmab"}


@pytest.mark.parametrize("keep", ["alpha_t alphabar_t", "sqrt_beta_t sqrtab", "alpha_t sqrtmab"])
def test_any_two_that_agree_are_enough(keep):
    tables = {name: min_diffusion(100)[name] for name in keep.split()}
    products = expected(100, includes_first=True)
    schedule = read(tables, {"n_T": 100})
    torch.testing.assert_close(schedule.alphas_cumprod, products, rtol=1e-4, atol=0)


def test_a_third_table_tells_roots_from_what_they_are_of():
    kept, product = (min_diffusion(100)[name] for name in ("alpha_t", "alphabar_t"))
    products = expected(100, includes_first=True)
    with refused("ddpm.p and ddpm.q can be read as two schedules"):
        read({"p": kept, "q": product})
    for third in (product.sqrt(), (1 - product).sqrt(), 1 - kept, kept**-0.5):
        schedule = read({"p": kept, "q": product, "r": third})
        torch.testing.assert_close(schedule.alphas_cumprod, products, rtol=1e-4, atol=0)
    roots = read({"p": kept.sqrt(), "q": product.sqrt(), "r": product})
    torch.testing.assert_close(roots.alphas_cumprod, products, rtol=1e-4, atol=0)


def test_unnamed_tables_of_a_usual_schedule_are_all_steps():
    linear = NoiseSchedule.linear(1000)
    tables = {"noise": linear.betas.float(), "root": linear.alphas_cumprod.sqrt().float()}
    schedule = read(tables)
    torch.testing.assert_close(schedule.betas, linear.betas, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "tables",
    [
        {"a": torch.linspace(0.99, 0.1, 40), "b": torch.linspace(0.01, 0.5, 40)},
        {"alpha": torch.linspace(0.99, 0.1, 40), "root": torch.linspace(0.99, 0.1, 40).sqrt()},
        {"a": torch.linspace(0.01, 0.5, 40), "b": 1 - torch.linspace(0.01, 0.5, 40)},
        {"weight": torch.ones(8), "bias": torch.zeros(8)},
    ],
)
def test_tables_that_no_product_joins_are_none(tables):
    found = ScheduleTables.within(tables)
    assert not found
    assert found.names <= {"alpha"}


def test_the_number_of_steps_is_that_of_the_file():
    linear = NoiseSchedule.linear(101)
    tables = {"betas": linear.betas, "alphas_cumprod": linear.alphas_cumprod}
    with refused("betas has 101 entries", "buffers:101", "buffers:100"):
        read(tables)
    for steps, total in (({"args": {"timesteps": 101}}, 101), ({"n_T": torch.tensor(100)}, 100)):
        assert read(tables, steps).num_timesteps == total
        torch.testing.assert_close(
            read(tables, option=f"buffers:{total}").alphas_cumprod,
            linear.alphas_cumprod[-total:],
            rtol=1e-9,
            atol=0,
        )
    with refused("`schedule=buffers:50`", "101 entries"):
        read(tables, option="buffers:50")
    with refused("buffers:100"):
        read(with_a_product_of_one(100), option="buffers:101")


@pytest.mark.parametrize("total", [37, 15])
def test_an_unusual_number_of_steps_is_asked_for(total):
    for tables in (min_diffusion(total), dict(list(with_a_product_of_one(total).items())[:2])):
        tables["kept"] = (1 - from_zero(total)).cumprod(0)
        with refused(f"buffers:{total + 1}", f"buffers:{total}"):
            read(tables)
        schedule = read(tables, option=f"buffers:{total}")
        products = expected(total, includes_first=True)
        torch.testing.assert_close(schedule.alphas_cumprod, products, rtol=1e-4, atol=0)
    linear = NoiseSchedule.linear(total + 1, beta_start=1e-4, beta_end=0.02)
    plain = {"betas": linear.betas, "alphas_cumprod": linear.alphas_cumprod}
    assert read(plain).num_timesteps == total + 1


def test_variances_alone_do_not_say_whether_entry_0_counts(tmp_path):
    beta = from_zero(100)
    with refused("entry for t = 0", "alphas_cumprod:FILE"):
        read({"beta_t": beta})
    # the remedy
    np.save(tmp_path / "products.npy", (1 - beta.double()).cumprod(0)[1:].numpy())
    schedule = read_schedule(f"alphas_cumprod:{tmp_path / 'products.npy'}")
    products = expected(100, includes_first=True)
    torch.testing.assert_close(schedule.alphas_cumprod, products, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", [list, tuple, np.asarray])
def test_tables_in_lists_and_arrays_are_read(kind):
    betas = np.linspace(0.01, 0.3, 20).tolist()
    tables = ScheduleTables.within({"cfg": {"betas": kind(betas)}}, source="f.pt")
    assert read_schedule("buffers", tables.schedule).betas.tolist() == pytest.approx(betas)


def test_the_betas_of_an_optimizer_are_no_table():
    for betas in ((0.9, 0.999), [0.5, 0.9, 0.99]):
        assert not ScheduleTables.within({"opt": {"betas": betas}}, source="f.pt")


def test_what_is_too_large_to_compare_is_read_by_its_name_alone(monkeypatch):
    tables = {f"ddpm.{name}": table for name, table in min_diffusion(100).items()}
    both = ScheduleTables.within(tables, source="f.pt")
    assert "ddpm.beta_t" not in tables
    assert "ddpm.sqrtab" in both.names
    monkeypatch.setattr(schedule_tables, "_MOST_ENTRIES", 101 * len(tables) - 1)
    assert "ddpm.sqrtab" not in ScheduleTables.within(tables, source="f.pt").names


def test_tables_of_low_precision_are_one_line():
    tables = {name: table.half() for name, table in min_diffusion(100).items()}
    with refused("alphabar_t has 16 bits", "name the schedule"):
        read(tables)


# ---- by their names

LINEAR = NoiseSchedule.linear(1000)
BETAS, PRODUCTS = LINEAR.betas, LINEAR.alphas_cumprod
SINGLE = BETAS.float()
SINGLE_PRODUCTS = (1 - SINGLE).cumprod(0)


@pytest.mark.parametrize(
    "tensors",
    [
        {"betas": BETAS, "alphas_cumprod": PRODUCTS, "alphas": 1 - BETAS},
        {"diffusion.betas": SINGLE, "diffusion.alphas_cumprod": SINGLE_PRODUCTS},
        {"betas": SINGLE, "alpha": SINGLE_PRODUCTS, "alpha_bar": SINGLE_PRODUCTS},
        {"alpha_hat": PRODUCTS},
        {"beta": SINGLE, "model.norm.beta": torch.randn(64), "sqrt_alphas_cumprod": SINGLE},
        {"ema.betas": BETAS, "model.betas": BETAS},
        {"betas": SINGLE, "betas_of_what": torch.zeros(3)},
    ],
)
def test_buffers_are_found_and_agree(tensors):
    schedule = read(tensors)
    torch.testing.assert_close(schedule.alphas_cumprod, PRODUCTS, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, ["no betas"]),
        ({"model.norm.beta": torch.randn(64)}, ["no betas"]),
        ({"alphas": 1 - BETAS}, ["alphas", "1 - beta to some", "alphas_cumprod:FILE"]),
        ({"alpha": PRODUCTS}, ["alpha", "1 - beta to some"]),
        ({"betas": BETAS, "alphas_cumprod": PRODUCTS.sqrt()}, ["betas and ddpm.alphas_cumprod"]),
        ({"betas": BETAS, "alpha_bar": 1 - BETAS}, ["alpha_bar", "look like alphas"]),
        ({"a.betas": BETAS, "b.betas": BETAS / 2}, ["a.betas and ddpm.b.betas"]),
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
        read(tensors)


def test_buffers_of_integers_for_floats_are_none():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # people have such files, though torch advises against it
        quantized = torch.quantize_per_tensor(SINGLE, 1e-4, 0, torch.quint8)
    with refused("`schedule=buffers`", "no betas"):
        read({"betas": quantized})
