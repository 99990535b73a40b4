"""What the command prints about a network of one's own names a remedy, which leads to a number."""

import contextlib
import json
import os
import shutil
import textwrap
import warnings

import click
import numpy as np
import pytest
import torch
from custom_networks import bound_of, opened
from safetensors.torch import save_file
from torch import nn

import ddpmbench as db
from ddpmbench.cli.launch import with_options
from ddpmbench.cli.likelihood import nll
from ddpmbench.errors import InputError

SAID = {
    "--schedule": "linear:20:0.001:0.3",
    "--prediction": "eps",
    "--variance": "fixed_large",
    "--time-input": "index",
    "--data-range": "-1,1",
}
NET = """
import torch
from torch import nn

class Net(nn.Module):
    image_channels, image_size = 1, 8

    def __init__(self, outputs=1):
        super().__init__()
        self.conv = nn.Conv2d(1, outputs, 3, padding=1)
        self.time = nn.Embedding(20, 1)

    def forward(self, x, t):
        return self.conv(x) + self.time(t)[:, :, None, None]
"""


@contextlib.contextmanager
def one_line(*words):
    """The block ends in one line, which the command prints with every one of the words."""
    with pytest.raises(InputError) as caught:
        yield
    line = with_options(str(caught.value), nll)
    assert "\n" not in line
    assert all(str(word) in line for word in words), line


class Own:
    """A folder with net.py and weights.pt, and the words of a command."""

    def __init__(self, path, data):
        self.path, self.data = path, data
        spaces = {"__name__": "net"}
        exec(NET, spaces)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = spaces["Net"]().eval()
        torch.save(self.net.state_dict(), path / "weights.pt")
        self.code("")

    def code(self, text, name="net.py"):
        (self.path / name).write_text(NET + textwrap.dedent(text))

    def words(self, name="Net", ckpt="weights.pt", file="net.py", **changed):
        options = {
            **SAID,
            **{f"--{key.replace('_', '-')}": value for key, value in changed.items()},
        }
        words = ["--network", f"{self.path / file}:{name}", "--data", self.data]
        words += [] if ckpt is None else ["--ckpt", self.path / ckpt]
        words += ["--num-images", "1"]
        return [*words, *(w for pair in options.items() if pair[1] is not None for w in pair)]

    def bound(self, *names, **changed):
        return bound_of(self.words(*names, **changed))


@pytest.fixture
def own(tmp_path, small_npz):
    return Own(tmp_path, small_npz)


@pytest.fixture
def right(own):
    """The number of the network as it is."""
    return own.bound()


# ---- weights


LOADED = """
from pathlib import Path

def load():
    net = Net()
    net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt")))
    return net
def frozen(): return load().requires_grad_(False)
def parallel(): return nn.DataParallel(load())
def compiled(): return torch.compile(load())
def both(): return torch.compile(nn.DataParallel(load()))
def inference():
    with torch.inference_mode():
        return load()
def half(): return load().half()
kept = load()
def once(): return kept
"""


@pytest.mark.parametrize("name", ["load", "frozen", "parallel", "compiled", "both", "inference"])
def test_code_that_loads_its_own_weights_needs_no_file(own, right, name):
    own.code(LOADED)
    assert own.bound(name, ckpt=None) == right
    assert own.bound(name) == right  # of --ckpt, which are the same


def test_the_weights_that_code_loads_are_its_fingerprint(own):
    own.code(LOADED)
    first, _ = opened(own.words("load", ckpt=None))
    again, _ = opened(own.words("load", ckpt=None))
    torch.save({n: w + 1 for n, w in own.net.state_dict().items()}, own.path / "weights.pt")
    other, _ = opened(own.words("load", ckpt=None))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.sha256 != other.sha256
    assert any("no `ckpt` was given" in note for note in first.notes)


def program(net, path, *, frozen):
    """A TorchScript file; torch.jit is to go, one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, (torch.zeros(2, 1, 8, 8), torch.tensor([1, 2])))
        torch.jit.save(torch.jit.freeze(traced) if frozen else traced, path)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("frozen", [False, True])
def test_a_torchscript_program(own, right, frozen):
    path = own.path / "net.pt"
    program(own.net, path, frozen=frozen)
    own.code(f"def load(): return torch.jit.load({str(path)!r}, map_location='cpu')")
    with one_line("net.pt", "--network FILE.py:NAME without --ckpt", "torch.jit.load(PATH)"):
        own.bound(ckpt="net.pt")
    assert own.bound("load", ckpt=None) == pytest.approx(right, abs=1e-5)
    if frozen:
        with one_line("without weights to load", "leave out --ckpt"):
            own.bound("load")
    first, _ = opened(own.words("load", ckpt=None))
    assert opened(own.words("load", ckpt=None))[0].sha256 == first.sha256
    with torch.no_grad():
        own.net.conv.weight += 1
    program(own.net, path, frozen=frozen)
    assert opened(own.words("load", ckpt=None))[0].sha256 != first.sha256


RANDOM = """
net = Net()
def built(): return Net()
def same(): return net
def seeded():
    torch.manual_seed(0)
    return Net()
def part():
    net = Net()
    net.conv.load_state_dict(load().conv.state_dict())
    return net
"""


def test_random_weights_are_none(own, right):
    """Without a file; the remedies are the file, and code that loads it."""
    own.code(LOADED + RANDOM)
    for name in ("Net", "built", "same", "seeded", "part"):
        with one_line("random ones that its code does not load", "--ckpt FILE"):
            own.bound(name, ckpt=None)
    assert own.bound("same") == right
    assert own.bound("once", ckpt=None) == right
    with one_line("--weights ema", "leave out --weights"):
        own.bound("load", ckpt=None, weights="ema")
    with one_line("--model-flags"):
        own.bound("load", ckpt=None, model_flags="x")
    own.code("def build(state): return Net()")
    with one_line("takes the content of a file of weights", "--ckpt FILE"):
        own.bound("build", ckpt=None)


def test_nan_in_the_weights_that_code_loads(own):
    own.code(LOADED)
    torch.save({n: w * torch.nan for n, w in own.net.state_dict().items()}, own.path / "weights.pt")
    with one_line("net.py:load", "holds NaN or infinite"):
        own.bound("load", ckpt=None)


def test_a_folder_names_the_file_in_it(own, right):
    (own.path / "state").mkdir()
    shutil.move(own.path / "weights.pt", own.path / "state" / "pytorch_model.bin")
    for other in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "training_args.bin"):
        (own.path / "state" / other).write_bytes(b"other")
    with one_line(f"--ckpt {own.path / 'state' / 'pytorch_model.bin'}"):
        own.bound(ckpt="state")
    assert own.bound(ckpt="state/pytorch_model.bin") == right
    (own.path / "empty").mkdir()
    with one_line("pass a file of weights", "holds none"):
        own.bound(ckpt="empty")


def shards(folder, state):
    """As `save_model` of accelerate divides weights."""
    files = {n: f"model-0000{k % 2 + 1}-of-00002.safetensors" for k, n in enumerate(state)}
    for file in set(files.values()):
        part = {name: state[name].contiguous() for name in state if files[name] == file}
        save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return files


def test_shards_are_read_by_their_index(own, right):
    (own.path / "state").mkdir()
    files = shards(own.path / "state", own.net.state_dict())
    index = "state/model.safetensors.index.json"
    with one_line(f"--ckpt {own.path / index}"):
        own.bound(ckpt="state")
    assert own.bound(ckpt=index) == right
    first, _ = opened(own.words(ckpt=index))
    changed = {n: w + 1 for n, w in own.net.state_dict().items()}
    shards(own.path / "state", changed)
    assert opened(own.words(ckpt=index))[0].sha256 != first.sha256
    (own.path / "state" / next(iter(files.values()))).unlink()
    with one_line("model-00001-of-00002.safetensors", "missing"):
        own.bound(ckpt=index)


# ---- the call


CALLS = """
class Labelled(Net):
    def forward(self, x, t, y): return super().forward(x, t) + y[:, None, None, None]
class Counted(Labelled): num_classes = 3
class Null(Counted): null_class = 5
class Keyword(Net):
    def forward(self, x, t, *, y): return super().forward(x, t)
class KeywordCounted(Keyword): num_classes = 3
class Masked(Net):
    num_classes = 3
    def forward(self, x, c, t, mask): return super().forward(x, t)
class Swapped(Net):
    num_classes = 3
    def forward(self, x, y, t): return super().forward(x, t)
class Conditioned(Net):
    num_classes = 3
    def forward(self, x, t, x_self_cond=None, y=None): return super().forward(x, t)
class TimeFirst(Net):
    def forward(self, t, x): return super().forward(x, t)
class Unlabelled(Net): num_classes = 3
class Optional(Net):
    def forward(self, x, t, y=None): return super().forward(x, t)
class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Masked()
    def forward(self, x_t, time):
        return self.net(x_t, None, time, None)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "Labelled",
            ["forward(x, t, y) needs y too", "attribute num_classes = 10", "null_class", "adapter"],
        ),
        ("Keyword", ["forward(x, t, y) takes something else", "adapter"]),
        (
            "KeywordCounted",
            ["because of the network's attribute num_classes", "leave num_classes out", "adapter"],
        ),
        ("Masked", ["forward(x, c, t, mask) takes something else", "adapter", "self.net = Net()"]),
        ("Swapped", ["has y where time is given and t elsewhere", "adapter"]),
        ("Conditioned", ["has x_self_cond where labels are given and y elsewhere"]),
        ("TimeFirst", ["has x where time is given and t elsewhere"]),
        ("Unlabelled", ["forward(x, t) takes fewer", "leave num_classes out"]),
    ],
)
def test_a_call_that_forward_does_not_take(own, name, words):
    own.code(CALLS)
    with one_line("net.py", *words, "docs/reference/checkpoints.md"):
        own.bound(name, **{"class": None if name in ("Labelled", "Keyword", "TimeFirst") else 1})


def test_its_remedies_arrive_at_a_number(own, right):
    own.code(CALLS)
    assert own.bound("Adapter") == right
    assert own.bound("Counted", **{"class": 0}) == right
    assert own.bound("Null", **{"class": 5}) != right
    assert own.bound("Optional") == right
    checkpoint, _ = opened(own.words("Optional"))
    assert any("forward takes y, and is called without it" in note for note in checkpoint.notes)


def test_a_null_class_is_named_and_no_other_is_taken(own):
    own.code(CALLS)
    for name, label, words in (
        ("Counted", 3, ["classes 0..2"]),
        ("Null", 4, ["classes 0..2, and 5 for none"]),
        ("Null", None, ["--class N", "classes 0..2, and 5 for none"]),
    ):
        with one_line(*words):
            own.bound(name, **{"class": label})
    checkpoint, _ = opened(own.words("Null", **{"class": 5}))
    settings = db.SampleSettings(label=5)
    assert len(db.generate_samples(checkpoint, 2, settings=settings, device="cpu").images) == 2
    with one_line("--class 4", "5 for none"):
        db.generate_samples(checkpoint, 2, settings=db.SampleSettings(label=4), device="cpu")


# ---- what a call gives and does


OUTPUTS = """
import asyncio, os, random, sys
import numpy as np

class Double(Net):
    def forward(self, x, t): return super().forward(x, t).double()
class Half(Net):
    def forward(self, x, t): return super().forward(x, t).half()
class Same(Net):
    def forward(self, x, t): return x
class Prints(Net):
    def forward(self, x, t):
        print("in forward")
        return super().forward(x, t)
class Seeds(Net):
    def forward(self, x, t):
        torch.manual_seed(0); np.random.seed(0); random.seed(0)
        return super().forward(x, t)
class Threads(Net):
    def forward(self, x, t):
        torch.set_num_threads(2)
        return super().forward(x, t)
class Long(Net):
    def forward(self, x, t): raise ValueError("one\\ntwo " + "long " * 1000 + "\\x1b[31m")
class Dies(Net):
    def forward(self, x, t): sys.exit("bye")
class Cancels(Net):
    def forward(self, x, t): raise asyncio.CancelledError
class Asks(Net):
    def forward(self, x, t): return x * float(input("factor? "))
class Dtype(Net):
    def forward(self, x, t):
        torch.set_default_dtype(torch.float64)
        return super().forward(x, t)
class Grad(Net):
    def forward(self, x, t):
        torch.set_grad_enabled(True)
        return super().forward(x, t)
"""


@pytest.mark.parametrize("name", ["Double", "Half", "Same", "Prints", "Seeds", "Threads"])
def test_what_a_call_may_do(own, right, name, capsys):
    own.code(OUTPUTS)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    result = own.bound(name)
    if name not in ("Half", "Same"):
        assert result == pytest.approx(right, abs=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Long", ["net.py, line ", "ValueError: one two long", "..."]),
        ("Dies", ["ends the program", "__main__"]),
        ("Cancels", ["net.py, line ", "CancelledError"]),
        ("Asks", ["EOFError", "no input to read"]),
        ("Dtype", ["torch.set_default_dtype", "set it back"]),
        ("Grad", ["torch.set_grad_enabled", "set it back"]),
    ],
)
def test_what_a_call_may_not_do_is_one_line(own, name, words):
    own.code(OUTPUTS)
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    with one_line("net.py", *words):
        own.bound(name)
    assert torch.get_default_dtype() is dtype
    assert torch.is_grad_enabled() is grad


LATER = """
import asyncio, sys
class Raises(Net):
    def forward(self, x, t):
        if 7 in t.tolist(): raise ValueError("no such step")
        return super().forward(x, t)
class Dies(Net):
    def forward(self, x, t):
        if 7 in t.tolist(): sys.exit(0)
        return super().forward(x, t)
class Cancels(Net):
    def forward(self, x, t):
        if 7 in t.tolist(): raise asyncio.CancelledError
        return super().forward(x, t)
class NaN(Net):
    def forward(self, x, t):
        return super().forward(x, t) * torch.where(t == 7, torch.nan, 1.0)[:, None, None, None]
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Raises", ["net.py, line ", "ValueError: no such step"]),
        ("Dies", ["net.py, line ", "SystemExit"]),
        ("Cancels", ["net.py, line ", "CancelledError"]),
        ("NaN", ["t = 8"]),
    ],
)
def test_what_goes_wrong_in_a_later_call_is_one_line_too(own, name, words):
    """In a run, in its check beforehand and in samples; the first call is of other steps."""
    own.code(LATER)
    with one_line(*words):
        own.bound(name)
    checkpoint, images = opened(own.words(name))
    if name != "NaN":
        with one_line(*words):
            db.evaluate_nll(checkpoint, images, check=True, device="cpu")
        with one_line(*words):
            db.generate_samples(checkpoint, 2, device="cpu")


SETS = """
import os, random
import numpy as np
os.chdir("/")
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.manual_seed(7); np.random.seed(7); random.seed(7)
torch.set_num_threads(2)
torch.set_default_device("meta")
torch.set_default_device("cpu")
"""


def test_what_its_file_sets_of_the_process_is_undone(own, right):
    """And changes no number."""
    own.code(SETS)
    folder, state, threads = os.getcwd(), torch.get_rng_state(), torch.get_num_threads()
    modes = torch._C._len_torch_function_stack()
    numbers = np.random.get_state()[1].copy()
    assert own.bound() == pytest.approx(right, abs=1e-6)
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert torch._C._len_torch_function_stack() == modes
    assert os.getcwd() == folder
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numbers)


# ---- the command

WHOLE = ("--estimator", "every-pair", "--draws", 1, "--format", "json")


def test_it_is_named_and_what_it_prints_is_no_result(own, completed, tmp_path):
    own.code(OUTPUTS)
    printed, message = completed("nll", *own.words("Prints"), *WHOLE, "--out", tmp_path / "r")
    checkpoint = json.loads(printed)["checkpoint"]
    assert checkpoint["family"] == "own network"
    assert checkpoint["network"].endswith("net.py:Prints")
    assert message.count("in forward") > 2  # two are before the run


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            dict.fromkeys(["schedule", "prediction", "variance", "time_input"]),
            [
                "--schedule linear:T:START:END",
                "--prediction PREDICTION",
                "--variance VARIANCE",
                "--time-input TIME as it was",
                "eps, x_start, v, previous_mean",
            ],
        ),
        ({"schedule": "linear:50:0.001:0.3"}, ["nn.Embedding of 20 rows", "50 steps"]),
        ({"time_input": "one-based"}, ["nn.Embedding of 20 rows", "--time-input one-based"]),
        ({"model_flags": "--image_size 8"}, ["--model-flags"]),
        ({"weights": "ema"}, ["--weights ema", "weights.pt"]),
    ],
)
def test_a_mistake_writes_nothing(refused, own, changed, words):
    line = refused("nll", *own.words(**changed))
    assert all(word in line for word in words), line


# ---- the name and the file


def test_names_of_files(own, right):
    own.code("", "a net, with spaces (1).py")
    assert own.bound(file="a net, with spaces (1).py") == right
    with pytest.raises(click.BadParameter, match="a name of 307 bytes"):
        own.bound(file=f"{'n' * 300}.py")
    with pytest.raises(click.BadParameter, match="control character"):
        own.bound(file="n\x07.py")
    os.mkfifo(own.path / "pipe.py")
    with one_line("is no regular file"):
        own.bound(file="pipe.py")
    (own.path / "folder.py").mkdir()
    with one_line("is no regular file"):
        own.bound(file="folder.py")


# ---- a module in hand


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: nn.LazyConv2d(1, 1), ["no numbers yet"]),
        (lambda: nn.Conv2d(1, 1, 1, device="meta"), ["no numbers yet"]),
        (lambda: nn.Conv2d, ["takes a torch module", "type"]),
    ],
)
def test_a_module_that_has_no_weights_is_one_line(network, words):
    with one_line("wrap_network", *words):
        db.wrap_network(network(), schedule="linear:1000")
