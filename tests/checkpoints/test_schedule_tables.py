"""Tables beside the weights are known by what they satisfy, whatever their names and lengths."""

import numpy as np
import pytest
import torch
from peers import refused

from ddpmbench.checkpoints import schedule_tables
from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.schedules import betas_schedule, products_schedule, read_schedule
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError


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
    return read_schedule(option, ScheduleTables.within({**tables, **(steps or {})}, source="f.pt"))


def expected(total, *, includes_first):
    """alphas_cumprod of t = 1..T."""
    beta = from_zero(total).double()
    product = (1 - beta).cumprod(0)
    return product[1:] if includes_first else product[1:] / product[0]


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
    schedule = read_schedule("buffers", found)
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
    assert read_schedule("buffers", tables).betas.tolist() == pytest.approx(betas)


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


# ---- tables that cannot be betas


USUAL = {
    "linear": lambda total: np.linspace(0.1, 20, total) / total,
    "scaled-linear": lambda total: np.linspace(0.3, 4.3, total) ** 2 / total,
}
LIKE = {
    "1 - alphas_cumprod": lambda betas, products: 1 - products,
    "sqrt(1 - alphas_cumprod)": lambda betas, products: np.sqrt(1 - products),
    "1 - beta, the last timestep first": lambda betas, products: 1 - betas[::-1],
    "alphas_cumprod or its square roots": lambda betas, products: products[::-1],
}
UNDO = {
    "1 - alphas_cumprod": (products_schedule, lambda values: 1 - values),
    "sqrt(1 - alphas_cumprod)": (products_schedule, lambda values: 1 - values**2),
    "1 - beta, the last timestep first": (betas_schedule, lambda values: 1 - values[::-1]),
    "alphas_cumprod or its square roots": (products_schedule, lambda values: values[::-1]),
}


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("shape", USUAL)
@pytest.mark.parametrize(("total", "dtype"), [(100, np.float64), (1000, np.float64), (1000, "f4")])
def test_another_table_in_place_of_betas_is_named(like, shape, total, dtype):
    betas = USUAL[shape](total)
    values = LIKE[like](betas, np.cumprod(1 - betas)).astype(dtype).astype(np.float64)
    with refused(f"look like {like}"):
        betas_schedule(values)
    # the remedy is the schedule that was meant
    read, undo = UNDO[like]
    np.testing.assert_allclose(read(undo(values)).alphas_cumprod, np.cumprod(1 - betas), rtol=1e-2)


@pytest.mark.parametrize("total", [100, 1000])
def test_falling_numbers_are_reversed_only_where_that_makes_betas(total):
    betas = USUAL["linear"](total)
    with refused("reverse them"):
        betas_schedule(betas[::-1])
    for values in (1 - betas, np.cumprod(1 - betas), np.sqrt(np.cumprod(1 - betas))):
        with pytest.raises(InputError, match="as products of alphas") as caught:
            betas_schedule(values)
        assert "reverse" not in str(caught.value)


def test_square_roots_of_betas_are_named():
    with refused("look like square roots of betas", "values**2"):
        betas_schedule(np.sqrt(USUAL["linear"](1000)))


@pytest.mark.parametrize(
    "values",
    [
        1 - NoiseSchedule.cosine(1000).alphas_cumprod.numpy(),
        np.sqrt(NoiseSchedule.scaled_linear(4000).betas.numpy()),
        np.full(1000, 0.5),
    ],
)
def test_betas_that_leave_nothing_are_refused_without_a_guess(values):
    with refused("of the data's variance, so they are likely something else"):
        betas_schedule(values)


def rising():
    """Schedules of every name that end above one half, in fewer and more steps."""
    for total in (10, 20, 50, 100, 1000, 4000):
        yield NoiseSchedule.cosine(total)
        yield NoiseSchedule.sigmoid(total)
        yield NoiseSchedule.sigmoid(total, start=0.0, end=3.0, temperature=0.3)
        yield NoiseSchedule.linear(1000).respaced(min(total, 999))
        yield NoiseSchedule.cosine(1000).respaced(min(total, 999))
    for total in (10, 20):
        for end in (0.5, 0.95):
            yield NoiseSchedule.linear(total, beta_start=1e-3, beta_end=end)
            yield NoiseSchedule.scaled_linear(total, beta_start=1e-3, beta_end=end)
            yield NoiseSchedule.geometric(total, beta_start=1e-3, beta_end=end)
            yield NoiseSchedule.sqrt_linear(total, beta_end=end)
            yield NoiseSchedule.sigmoid_betas(total, beta_start=1e-3, beta_end=end)
            yield NoiseSchedule.cosine_betas(total, beta_start=1e-3, beta_end=end)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_betas_that_rise_far_are_betas(dtype):
    for schedule in rising():
        betas = schedule.betas.numpy().astype(dtype).astype(np.float64)
        np.testing.assert_array_equal(betas_schedule(betas).betas, betas)


# ---- products that end above one half


SHAPES = {
    "linear": lambda total: np.linspace(1e-4, 0.02, total),
    "quadratic": lambda total: np.linspace(1e-2, 0.14, total) ** 2,
    "geometric": lambda total: np.geomspace(1e-4, 0.02, total),
    "constant": lambda total: np.full(total, 0.01),
    "rising fast": lambda total: np.linspace(1e-4, 0.3, total) / total,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("total", [3, 10, 20])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_short_chain_ends_above_one_half(tmp_path, shape, total, dtype):
    betas = SHAPES[shape](total)
    products = np.cumprod(1 - betas)
    assert products[-1] > 0.5
    np.save(tmp_path / "table.npy", products.astype(dtype))
    option = f"alphas_cumprod:{tmp_path / 'table.npy'}"
    np.testing.assert_allclose(read_schedule(option).alphas_cumprod, products, rtol=1e-6)
    schedule = read({"alphas_cumprod": torch.from_numpy(products.astype(dtype))})
    np.testing.assert_allclose(schedule.alphas_cumprod, products, rtol=1e-6)
    if shape != "constant":
        np.save(tmp_path / "table.npy", (1 - betas).astype(dtype))
        with refused("look like alphas"):
            read_schedule(option)
