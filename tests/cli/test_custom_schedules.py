"""A schedule in the file of one's own network: from its tables to the bound."""

import json

import numpy as np
import pytest
import torch

from ddpmbench.report.nll_text import printed_nll

TOTAL = 10
NET = """
import torch
from torch import nn

class Net(nn.Module):
    image_channels, image_size = 1, 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x) + t[:, None, None, None]
"""
SAID = "--prediction eps --variance fixed_large --time-input fraction --data-range=-1,1"


def tables():
    """minDiffusion's, with an entry for t = 0."""
    beta = (0.02 - 1e-4) * torch.arange(TOTAL + 1) / TOTAL + 1e-4
    product = (1 - beta).log().cumsum(0).exp()
    return {
        "alpha_t": 1 - beta,
        "sqrt_beta_t": beta.sqrt(),
        "alphabar_t": product,
        "sqrtab": product.sqrt(),
        "sqrtmab": (1 - product).sqrt(),
        "mab_over_sqrtmab": beta / (1 - product).sqrt(),
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    generator = torch.Generator().manual_seed(0)
    weights = {
        "conv.weight": 0.3 * torch.randn(1, 1, 3, 3, generator=generator),
        "conv.bias": torch.zeros(1),
    }
    flat = {**weights, **tables(), "n_T": torch.tensor(TOTAL)}
    torch.save({"flat": flat}, tmp_path / "flat.pt")
    inside = {**{f"eps_model.{name}": w for name, w in weights.items()}, **tables()}
    torch.save({"state_dict": inside, "timesteps": TOTAL}, tmp_path / "inside.pt")
    np.save(tmp_path / "products.npy", tables()["alphabar_t"].double()[1:].numpy())
    return tmp_path


@pytest.fixture
def evaluate(said, folder, small_npz):
    def run(file, schedule, *more):
        words = ["--ckpt", folder / file, "--network", f"{folder / 'net.py'}:Net", *SAID.split()]
        sizes = ["--data", small_npz, "--estimator", "every-pair", "--draws", "1"]
        out = ["--out", folder / f"run-{file}-{schedule.partition(':')[0]}"]
        status, printed, told = said(
            "nll", *words, "--schedule", schedule, *sizes, *out, "--format", "json", *more
        )
        assert status == 0, told
        return json.loads(printed), told

    return run


@pytest.mark.parametrize("file", ["flat.pt", "inside.pt"])
def test_the_tables_are_the_chain_that_was_trained(evaluate, folder, file):
    read, told = evaluate(file, "buffers")
    assert read["num_timesteps"] == TOTAL
    assert "the first for t = 0" in told
    expected, quiet = evaluate(file, f"alphas_cumprod:{folder / 'products.npy'}")
    assert read["bits_per_dim"] == pytest.approx(expected["bits_per_dim"], rel=1e-4)
    assert "is not that of the tables" not in quiet


def test_another_schedule_and_another_number_of_steps_are_noted(evaluate):
    read, _ = evaluate("flat.pt", "buffers")
    other, told = evaluate("flat.pt", f"linear:{TOTAL}:0.0001:0.02")
    assert other["bits_per_dim"] > read["bits_per_dim"] + 0.05
    assert "is not that of the tables in the file (the table flat.alphabar_t says" in told
    assert "the file says" not in told
    _, told = evaluate("flat.pt", "geometric:20:0.0001:0.02")
    assert "has 20 steps, and the file says flat.n_T = 10" in told


def test_a_file_of_two_schedules_is_noted(evaluate, folder):
    betas = np.linspace(1e-3, 0.3, TOTAL)
    np.savez(folder / "two.npz", betas=betas, alphas_cumprod=np.cumprod(1 - betas) ** 2)
    _, told = evaluate("flat.pt", f"betas:{folder / 'two.npz'}")
    assert "two.npz: the file's betas and alphas_cumprod contradict each other" in told


def test_a_table_that_is_something_else_is_refused_for_fewer_timesteps_too(said, folder, small_npz):
    np.save(folder / "other.npy", 1 - np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    words = ["--ckpt", folder / "flat.pt", "--network", f"{folder / 'net.py'}:Net", *SAID.split()]
    schedule = ["--schedule", f"betas:{folder / 'other.npy'}", "--timesteps", "50"]
    status, _, told = said("nll", *words, *schedule, "--data", small_npz)
    assert status == 2
    assert "look like 1 - alphas_cumprod" in told


def test_a_chain_that_does_not_end_in_noise_is_named(evaluate):
    summary, _ = evaluate("flat.pt", "buffers")
    assert summary["prior"] > 0.1

    (line,) = (line for line in printed_nll(summary, "table").splitlines() if "far from" in line)
    assert line.startswith(f"prior       {summary['prior']:.4f} bits/dim")
    quiet = printed_nll({**summary, "prior": 0.0999}, "table")
    assert "far from the normal prior" not in quiet


@pytest.mark.parametrize(
    ("file", "schedule"), [("flat.pt", "buffers"), ("steps.pt", "linear:200:START:END")]
)
def test_inspect_begins_with_what_the_file_has(said, folder, file, schedule):
    flat = torch.load(folder / "flat.pt")["flat"]
    weights = {name: flat[name] for name in ("conv.weight", "conv.bias")}
    torch.save({"net": weights, "args": {"timesteps": 200}}, folder / "steps.pt")
    network = f"{folder / 'net.py'}:Net"
    status, printed, told = said("inspect", folder / file, "--network", network, "--format", "json")
    assert status == 0, told
    summary = json.loads(printed)
    assert summary["missing"]["schedule"] == schedule
    assert schedule in summary["command"]
