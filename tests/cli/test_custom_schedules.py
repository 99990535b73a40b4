"""A schedule in the file of one's own network: from its tables to the bound."""

import json

import numpy as np
import pytest
import torch
from custom_networks import Own

from ddpmbench.report.nll_text import printed_nll

TOTAL = 10
CODE = """
class Shares(nn.Module):
    image_channels, image_size = 1, 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x) + t[:, None, None, None]
"""
BETAS = (0.02 - 1e-4) * torch.arange(TOTAL + 1) / TOTAL + 1e-4
PRODUCTS = (1 - BETAS).log().cumsum(0).exp()  # minDiffusion's, with an entry for t = 0


@pytest.fixture
def own(tmp_path, small_npz):
    own = Own(tmp_path, CODE, name="Shares", data=small_npz)
    weights = {"conv.weight": torch.full((1, 1, 3, 3), 0.1), "conv.bias": torch.zeros(1)}
    tables = {"alpha_t": 1 - BETAS, "sqrt_beta_t": BETAS.sqrt(), "alphabar_t": PRODUCTS}
    flat = {**weights, **tables, "sqrtab": PRODUCTS.sqrt(), "n_T": torch.tensor(TOTAL)}
    own.save({"flat": flat}, "flat.pt")
    own.save({"net": weights, "args": {"timesteps": 200}}, "steps.pt")
    np.save(tmp_path / "products.npy", PRODUCTS.double()[1:].numpy())
    return own


@pytest.fixture
def evaluate(completed, own):
    def run(schedule):
        changed = {"prediction": "eps", "time_input": "fraction", "schedule": schedule}
        words = own.words("Shares", ckpt="flat.pt", estimator="every-pair", draws=1, **changed)
        printed, message = completed("nll", *words, "--format", "json")
        return json.loads(printed), message

    return run


def test_the_tables_are_the_chain_that_was_trained(evaluate, own):
    read, message = evaluate("buffers")
    assert read["num_timesteps"] == TOTAL
    assert "the first for t = 0" in message
    expected, message = evaluate(f"alphas_cumprod:{own.path / 'products.npy'}")
    assert read["bits_per_dim"] == pytest.approx(expected["bits_per_dim"], rel=1e-4)
    assert "is not that of the tables" not in message
    assert "the file says" not in message
    _, message = evaluate("geometric:20:0.0001:0.02")
    assert "has 20 steps, and the file says flat.n_T = 10" in message
    # The chain does not end in noise.
    assert read["prior"] > 0.1
    (line,) = (line for line in printed_nll(read, "table").splitlines() if "far from" in line)
    assert line.startswith(f"prior       {read['prior']:.4f} bits/dim")
    quiet = printed_nll({**read, "prior": 0.0999}, "table")
    assert "far from the normal prior" not in quiet


@pytest.mark.parametrize(
    ("file", "schedule"), [("flat.pt", "buffers"), ("steps.pt", "linear:200:START:END")]
)
def test_inspect_begins_with_what_the_file_has(completed, own, file, schedule):
    printed, _ = completed(
        "inspect", own.path / file, "--network", own.option("Shares"), "--format", "json"
    )
    summary = json.loads(printed)
    assert summary["missing"]["schedule"] == schedule
    assert schedule in summary["command"]
