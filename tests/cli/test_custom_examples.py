"""The examples of custom networks in docs/reference/checkpoints.md run as they stand there."""

import shlex
import warnings

import pytest
import torch
from custom_networks import bound_of, opened
from documents import ROOT, blocks, commands
from torch import nn

from ddpmbench.execution.devices import evaluating_checkpoint

TEXT = (ROOT / "docs" / "reference" / "checkpoints.md").read_text()
(CODE,) = [block for block in blocks(TEXT, "python") if block.startswith("# own.py")]
COMMANDS = {
    words[words.index("--network") + 1].partition(":")[2]: words
    for words in commands(TEXT)
    if any(word.startswith("own.py:") for word in words)
}
NET = """
import math
import types
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, outputs=1):
        super().__init__()
        self.conv = nn.Conv2d(1, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.time = nn.Embedding(1000, 1)
    def forward(self, x, t):
        return self.norm(self.conv(x)) + self.time(t)[:, :, None, None]

class Record(Net):
    def forward(self, x, t):
        return types.SimpleNamespace(sample=super().forward(x, t), step=t)

class Conditional(Net):
    def __init__(self):
        super().__init__()
        self.classes = nn.Embedding(10, 1)
    def forward(self, x, c, t, context_mask):
        shift = self.classes(c) * ~context_mask[:, None]
        return super().forward(x, t) + shift[:, :, None, None]

class NCSN(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("sigmas", torch.logspace(math.log10(50), -2, 232))
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x, y):
        return self.conv(2 * x - 1) / self.sigmas[y][:, None, None, None]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the examples take to be there."""
    made = tmp_path_factory.mktemp("own")
    (made / "net.py").write_text(NET)
    (made / "own.py").write_text(CODE)
    spaces = {"__name__": "net"}
    exec(NET, spaces)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {
            "record.pt": spaces["Record"](),
            "conditional.pt": spaces["Conditional"](),
            "learned.pt": spaces["Net"](outputs=2),
        }
        for name, network in networks.items():
            torch.save(network.state_dict(), made / name)
        net, ncsn = spaces["Net"]().eval(), spaces["NCSN"]()
    ema = {name: 2 * weight.detach() for name, weight in net.named_parameters()}
    torch.save({"model": net.state_dict(), "ema": ema}, made / "last.pt")
    # as ermongroup/ncsnv2 saves them: weights, optimizer, epoch, step, averages of parameters
    averages = {name: 3 * weight.detach() for name, weight in ncsn.named_parameters()}
    state = nn.DataParallel(ncsn).state_dict()
    training = torch.optim.Adam(ncsn.parameters()).state_dict()
    torch.save([state, training, 5, 300000, averages], made / "checkpoint_300000.pth")
    example = (torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is to go, one day
        torch.jit.save(torch.jit.trace(net, example), made / "scripted.pt")
    return made, {**networks, "last.pt": net, "ncsn": ncsn}


def output_of(words, x_t, t, label=None):
    checkpoint, _ = opened(words)
    with torch.no_grad(), evaluating_checkpoint(checkpoint):
        return checkpoint.model_output(x_t, t, label)


def test_every_builder_of_the_examples_has_a_command():
    spaces = [line.split()[1] for line in CODE.splitlines() if line.startswith(("class", "def"))]
    assert {name.partition("(")[0].rstrip(":") for name in spaces} == set(COMMANDS)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_arrives_at_a_number(folder, small_npz, monkeypatch, name):
    """And calls the network as its own code does."""
    made, networks = folder
    monkeypatch.chdir(made)
    words = shlex.split(shlex.join(COMMANDS[name]).replace("DIR", str(small_npz)))[2:]
    assert bound_of([*words, "--num-images", "1", "--timesteps", "3"]) > 0
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([5, 1000])
    with torch.no_grad():
        match name:
            case "Adapter":
                expected = networks["record.pt"].eval()(x_t, t - 1).sample
            case "Classes":
                labels, none = torch.tensor([4, 10]), torch.tensor([False, True])
                inner = networks["conditional.pt"].eval()
                expected = inner(x_t, torch.tensor([4, 0]), t - 1, none)
                torch.testing.assert_close(output_of(words, x_t, t, labels), expected)
                return
            case "ncsn":
                t, scale = torch.tensor([5, 200]), opened(words)[0].schedule.log_scale.exp()
                own = (scale[t - 1][:, None, None, None] * x_t).float()
                triple = {n: 3 * w for n, w in networks["ncsn"].named_parameters()}
                expected = torch.func.functional_call(networks["ncsn"], triple, (own, 232 - t))
            case "Mean":
                expected = networks["learned.pt"].eval()(x_t, t - 1)[:, :1]
            case "joined":
                double = {n: 2 * w for n, w in networks["last.pt"].named_parameters()}
                expected = torch.func.functional_call(networks["last.pt"], double, (x_t, t - 1))
            case _:
                expected = networks["last.pt"](x_t, t - 1)
        # float32, rounded in another order where x_t is scaled; sums that cancel are relative to
        # the largest of their image
        largest = expected.abs().amax((1, 2, 3), keepdim=True)
        output = output_of(words, x_t, t) / largest
        torch.testing.assert_close(output, expected / largest, rtol=0, atol=1e-5)
