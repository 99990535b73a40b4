"""Training states of NCSN and NCSNv2, lists of a network of the user's own and its optimizer."""

import pytest
import torch
from peers import refused
from torch import nn

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process

LEVELS = 10
CODE = f"""
import torch
from torch import nn

class NCSN(nn.Module):
    '''Refines the features of a lower resolution, at a level from the most noise down.'''

    def __init__(self, persistent=False):
        super().__init__()
        sigmas = torch.logspace(0, -2, {LEVELS})
        self.register_buffer("sigmas", sigmas, persistent=persistent)
        self.begin = nn.Conv2d(1, 4, 3, padding=1)
        self.low = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.refine = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Embedding({LEVELS}, 4)
        self.end = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x, y):
        h = self.begin(2 * x - 1)
        low = nn.functional.interpolate(self.low(nn.functional.elu(h)), size=h.shape[2:])
        h = self.refine(nn.functional.elu(h)) + self.scale(y)[:, :, None, None] * low
        return self.end(h) / self.sigmas[y][:, None, None, None]

class Levels(NCSN):
    def __init__(self):
        super().__init__(persistent=True)
"""


@pytest.fixture
def made(tmp_path):
    """The networks' code, a trained one and its average."""
    (tmp_path / "net.py").write_text(CODE)
    space = {"__name__": "net"}
    exec(CODE, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = space["NCSN"](), space["NCSN"]()
    return tmp_path, *networks


def states(network, average, kind):
    """What the projects save: weights and optimizer; later epoch, step and averages."""
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 1, 8, 8), torch.tensor([3])).sum().backward()
    optimizer.step()
    saved = [nn.DataParallel(network).state_dict(), optimizer.state_dict()]
    if kind != "ncsn":
        saved += [5, 1000]
    if kind == "ncsnv2 averaged":
        saved.append({n: w.detach() for n, w in average.named_parameters()})
    return saved


def settings(folder, name="NCSN", **changes):
    return CheckpointSettings(
        **{
            "network": f"{folder}/net.py:{name}",
            "process": f"ve:0.01:1:{LEVELS}",
            "prediction": "score",
            "variance": "fixed_large",
            "time_input": "reversed-index",
            "data_range": (0.0, 1.0),
            **changes,
        }
    )


@pytest.mark.parametrize("kind", ["ncsn", "ncsnv2", "ncsnv2 averaged"])
@pytest.mark.parametrize("weights", [None, "raw"])
def test_the_score_of_a_level_is_the_network_s(made, kind, weights):
    folder, network, average = made
    torch.save(states(network, average, kind), folder / "checkpoint.pth")
    checkpoint = load_checkpoint(folder / "checkpoint.pth", settings(folder, weights=weights))
    is_average = kind == "ncsnv2 averaged" and weights is None
    t = torch.tensor([1, 4, LEVELS])
    x_t = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    scale = checkpoint.schedule.log_scale.exp()[t - 1][:, None, None, None]
    with torch.no_grad(), checkpoint.running():
        expected = (average if is_average else network)(x_t.float(), LEVELS - t)
        output = checkpoint.model_output(x_t / scale, t)
    torch.testing.assert_close(output, expected)
    assert checkpoint.weights == ("ema" if is_average else weights)
    assert checkpoint.schedule.process is Process.VE
    assert checkpoint.time_input is TimeInput.REVERSED_INDEX
    assert checkpoint.prediction is Prediction.SCORE
    assert not any("called without it" in note for note in checkpoint.notes)  # y is the time


def test_the_levels_of_a_network_are_those_of_the_process(made):
    """The noise at which the network divides by a level is the noise of that timestep."""
    folder, network, average = made
    torch.save(states(network, average, "ncsn"), folder / "checkpoint.pth")
    schedule = load_checkpoint(folder / "checkpoint.pth", settings(folder)).schedule
    sigma = schedule.one_minus_alphas_cumprod.sqrt() * schedule.log_scale.exp()
    torch.testing.assert_close(sigma, network.sigmas.flip(0).double(), rtol=1e-6, atol=0)


def test_averages_without_the_levels_name_the_remedy(made):
    folder, network, average = made
    torch.save(states(network, average, "ncsnv2 averaged"), folder / "checkpoint.pth")
    with refused(folder / "checkpoint.pth", "sigmas missing", "NAME(state)", "`weights=raw`"):
        load_checkpoint(folder / "checkpoint.pth", settings(folder, "Levels"))
