"""What the command prints about a network of one's own names a remedy, which leads to a number."""

import contextlib
import json
import os
import shutil
import warnings

import click
import pytest
import torch
from custom_networks import Own
from safetensors.torch import save_file

import ddpmbench as db
from ddpmbench.cli.launch import with_options
from ddpmbench.cli.likelihood import nll
from ddpmbench.errors import InputError


@contextlib.contextmanager
def one_line(*words):
    """The block ends in one line, which the command prints with every one of the words."""
    with pytest.raises(InputError) as caught:
        yield
    line = with_options(str(caught.value), nll)
    assert "\n" not in line
    assert all(str(word) in line for word in words), line


@pytest.fixture
def own(tmp_path, small_npz):
    return Own(tmp_path, data=small_npz)


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
    own.add(LOADED)
    assert own.bound(name, ckpt=None) == right
    assert own.bound(name) == right  # of --ckpt, which are the same


def test_the_weights_that_code_loads_are_its_fingerprint(own):
    own.add(LOADED)
    first = own.open("load", ckpt=None)
    again = own.open("load", ckpt=None)
    torch.save({n: w + 1 for n, w in own.net.state_dict().items()}, own.path / "weights.pt")
    other = own.open("load", ckpt=None)
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
    own.add(f"def load(): return torch.jit.load({str(path)!r}, map_location='cpu')")
    with one_line("net.pt", "--network FILE.py:NAME without --ckpt", "torch.jit.load(PATH)"):
        own.bound(ckpt="net.pt")
    assert own.bound("load", ckpt=None) == pytest.approx(right, abs=1e-5)
    if frozen:
        with one_line("without weights to load", "leave out --ckpt"):
            own.bound("load")
    first = own.open("load", ckpt=None)
    assert own.open("load", ckpt=None).sha256 == first.sha256
    with torch.no_grad():
        own.net.first.weight += 1
    program(own.net, path, frozen=frozen)
    assert own.open("load", ckpt=None).sha256 != first.sha256


RANDOM = """
net = Net()
def built(): return Net()
def same(): return net
def seeded():
    torch.manual_seed(0)
    return Net()
def part():
    net = Net()
    net.first.load_state_dict(load().first.state_dict())
    return net
"""


def test_random_weights_are_none(own, right):
    """Without a file; the remedies are the file, and code that loads it."""
    own.add(LOADED + RANDOM)
    for name in ("Net", "built", "same", "seeded", "part"):
        with one_line("random ones that its code does not load", "--ckpt FILE"):
            own.bound(name, ckpt=None)
    assert own.bound("same") == right
    assert own.bound("once", ckpt=None) == right
    with one_line("--weights ema", "leave out --weights"):
        own.bound("load", ckpt=None, weights="ema")
    with one_line("--model-flags"):
        own.bound("load", ckpt=None, model_flags="x")
    own.add("def build(state): return Net()")
    with one_line("takes the content of a file of weights", "--ckpt FILE"):
        own.bound("build", ckpt=None)


def test_nan_in_the_weights_that_code_loads(own):
    own.add(LOADED)
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
    first = own.open(ckpt=index)
    changed = {n: w + 1 for n, w in own.net.state_dict().items()}
    shards(own.path / "state", changed)
    assert own.open(ckpt=index).sha256 != first.sha256
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
    own.add(CALLS)
    with one_line("net.py", *words, "docs/reference/checkpoints.md"):
        own.bound(name, **{"class": None if name in ("Labelled", "Keyword", "TimeFirst") else 1})


def test_its_remedies_arrive_at_a_number(own, right):
    own.add(CALLS)
    assert own.bound("Adapter") == right
    assert own.bound("Counted", **{"class": 0}) == right
    assert own.bound("Null", **{"class": 5}) != right
    assert own.bound("Optional") == right
    checkpoint = own.open("Optional")
    assert any("forward takes y, and is called without it" in note for note in checkpoint.notes)


def test_a_null_class_is_named_and_no_other_is_taken(own):
    own.add(CALLS)
    for name, label, words in (
        ("Counted", 3, ["classes 0..2"]),
        ("Null", 4, ["classes 0..2, and 5 for none"]),
        ("Null", None, ["--class N", "classes 0..2, and 5 for none"]),
    ):
        with one_line(*words):
            own.bound(name, **{"class": label})
    checkpoint = own.open("Null", **{"class": 5})
    settings = db.SampleSettings(label=5)
    assert len(db.generate_samples(checkpoint, 2, settings=settings, device="cpu").images) == 2
    with one_line("--class 4", "5 for none"):
        db.generate_samples(checkpoint, 2, settings=db.SampleSettings(label=4), device="cpu")


# ---- what a call gives and does


OUTPUTS = """
class Double(Net):
    def forward(self, x, t): return super().forward(x, t).double()
class Half(Net):
    def forward(self, x, t): return super().forward(x, t).half()
class NaN(Net):
    def forward(self, x, t):
        return super().forward(x, t) * torch.where(t == 7, torch.nan, 1.0)[:, None, None, None]
"""


def test_the_type_of_an_output_is_its_own(own, right):
    own.add(OUTPUTS)
    assert own.bound("Double") == pytest.approx(right, abs=1e-6)
    assert own.bound("Half") == pytest.approx(right, rel=0.01)


def test_nan_in_a_later_call_names_its_timestep(own):
    own.add(OUTPUTS)
    with one_line("t = 8"):
        own.bound("NaN")


# ---- the command


def test_a_mistake_is_one_line_and_writes_nothing(refused, own):
    line = refused("nll", *own.words(time_input="one-based", data_range="-1,1"))
    assert "nn.Embedding of 20 rows" in line
    assert "--time-input one-based" in line


# ---- the name and the file


def test_names_of_files(own, right):
    own.add("", "a net, with spaces (1).py")
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
