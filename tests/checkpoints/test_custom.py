"""A network of the user's own: as it was trained, or one line that says why not."""

import contextlib
import os
import sys
from pathlib import Path

import pytest
import torch
from custom_networks import NET, SETTINGS, Own
from peers import refused
from safetensors.torch import save_file

import ddpmbench as db
from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.settings import MissingSettingsError
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import same_output
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.execution.devices import evaluating_checkpoint
from ddpmbench.execution.network_check import check_network

COUNT = "norm.num_batches_tracked"


@pytest.fixture
def folder(tmp_path):
    return Own(tmp_path)


@pytest.fixture
def net(folder):
    return folder.net


def same_outputs(checkpoint, net):
    x_t, t = torch.randn(3, 1, 6, 6), torch.tensor([1, 7, 20])
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.model_output(x_t, t), net(x_t, t - 1))


# ---- what is read


def test_a_class_is_the_network_as_it_was_trained(folder, net):
    checkpoint = folder.load()
    same_outputs(checkpoint, net)
    assert not checkpoint.network.training
    assert torch.equal(
        checkpoint.schedule.betas, NoiseSchedule.linear(20, beta_start=0.001, beta_end=0.3).betas
    )
    assert (checkpoint.prediction, checkpoint.variance) == ("v", "fixed_small")
    assert checkpoint.data_range == DataRange()
    assert any("`data_range`" in note for note in checkpoint.notes)


def test_a_range_that_is_said_is_taken_and_not_noted(folder):
    checkpoint = folder.load(data_range=(-0.5, 0.5), levels=32)
    assert checkpoint.data_range == DataRange(-0.5, 0.5, 32)
    assert not any("images are taken" in note for note in checkpoint.notes)


BUILDERS = {
    "no parameter": "def build(): return Net(4)",
    "a default": "def build(width=4): return Net(width)",
    "partial": "import functools\nbuild = functools.partial(Net, width=4)",
    "the state": """
        def build(state):
            net = Net()
            net.load_state_dict(state)
            return net
    """,
    "AveragedModel": "def build(): return torch.optim.swa_utils.AveragedModel(Net())",
    "double": "def build(): return Net().double()",
    "in training": "def build(): return Net().train()",
    "on meta": """
        def build():
            with torch.device("meta"):
                return Net()
    """,
}


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_a_function_that_builds_it(folder, net, builder):
    folder.add(builder)
    same_outputs(folder.load("build"), net)


BUFFER = "def __init__(self): super().__init__(); self.register_buffer('t', {}, persistent=False)"
ATTRIBUTE = "def __init__(self): super().__init__(); self.t = {}"
SEEDED = "torch.randn(1, generator=torch.Generator().manual_seed(3))"


def checked(checkpoint):
    return check_network(checkpoint, (1, 6, 6), device=torch.device("cpu"))


RANDOM = {
    "mask": "(torch.rand(6, 6) > 0.5).float()",
    "order": "torch.rand(36).argsort().reshape(6, 6)",
    "permutation": "torch.randperm(36).reshape(6, 6)",
    "whole": "torch.randint(9, (6, 6))",
    "NumPy's": "torch.tensor(np.random.randn(6, 6)).float()",
    "a generator's": "torch.tensor(np.random.default_rng().normal(size=(6, 6)))",
    "Python's": "random.random()",
    "the file's": "MASK",
    "a module's beside it": "helper.MASK",
}
DRAWN = """
import random
import helper
import numpy as np
MASK = torch.randperm(36).reshape(6, 6)
class Random(Net):
    def __init__(self):
        super().__init__()
        self.kept = {}
    def forward(self, x, t):
        return super().forward(x, t) + (t == {})[:, None, None, None] * self.kept
"""


@pytest.mark.parametrize("index", [0, 9, 19])
@pytest.mark.parametrize("drawn", RANDOM.values(), ids=RANDOM)
def test_what_is_random_is_refused_by_its_output(folder, drawn, index):
    """At the first, the middle or the last timestep."""
    folder.code("import torch; MASK = torch.randperm(36).reshape(6, 6)", "helper.py")
    folder.add(DRAWN.format(drawn, index))
    with refused("net.py:Random", "another output", "other random numbers", "draw it with a seed"):
        checked(folder.load("Random"))


def test_what_the_first_call_draws_is_refused(folder):
    folder.add("""
        import functools
        class Random(Net):
            @functools.cached_property
            def kept(self): return torch.randn(6, 6)
            def forward(self, x, t): return super().forward(x, t) + self.kept
    """)
    with refused("net.py:Random", "other random numbers"):
        checked(folder.load("Random"))


ONCE = """
import os
os.environ["RUNS"] += "+"
if os.environ["RUNS"] == "++":
    raise {}
"""


def test_code_that_runs_only_once_is_refused(folder, monkeypatch):
    """It may be random; but that there is no memory for two networks is no mistake."""
    for problem, words in (("RuntimeError('op exists')", "op exists"), ("MemoryError", None)):
        monkeypatch.setenv("RUNS", "")
        folder.add(ONCE.format(problem))
        checkpoint = folder.load()
        with refused(words, "in a second run", "twice") if words else contextlib.nullcontext():
            checked(checkpoint)
        assert os.environ["RUNS"] == "++"


@pytest.mark.parametrize("name", ["net.py", "weights.pt"])
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("raise OSError")])
def test_code_is_not_run_again_if_a_file_has_changed_since(folder, net, name, change):
    """It is loaded; what is in memory is evaluated."""
    checkpoint = folder.load()
    change(folder.path / name)
    same_outputs(checked(checkpoint), net)


def test_random_numbers_of_torch_are_nan(folder):
    """Those of a buffer are refused at once, others by the output."""
    call = "def forward(self, x, t): return super().forward(x, t) + self.t"
    folder.add(f"class Random(Net):\n    {BUFFER.format('torch.randn(1)')}\n")
    with refused("net.py:Random", "t is random and in no file", "manual_seed"):
        folder.load("Random")
    folder.add(f"class Random(Net):\n    {ATTRIBUTE.format('torch.randn(1)')}\n    {call}\n")
    with refused("net.py:Random", "t is NaN, or random and in no file", "manual_seed"):
        checked(folder.load("Random"))


@pytest.mark.parametrize(
    "body",
    [
        ATTRIBUTE.format("torch.randn(3), torch.randperm(36)"),  # and used nowhere
        ATTRIBUTE.format("len(np.random.rand(3))"),
        ATTRIBUTE.format(SEEDED),
        BUFFER.format(SEEDED),
        "pass\nUNUSED = torch.randperm(36)",
    ],
)
def test_what_is_random_but_in_no_output_or_from_a_seed_is_fine(folder, net, body):
    folder.add(f"import numpy as np\nclass Fine(Net):\n    {body}\n")
    first, again = (checked(folder.load("Fine")) for _ in range(2))
    assert first.identity == again.identity
    same_outputs(first, net)
    assert torch.randn(3).isfinite().all()


def test_another_imported_module_is_another_network(folder):
    """However little it changes the output."""
    prints = []
    for eps in (1.0, 1.0001):
        (folder.path / "helper.py").write_text(f"EPS = {eps}\n")
        folder.add("""
        import helper
        class Helped(Net):
            def forward(self, x, t): return super().forward(x, t) * helper.EPS
        """)
        prints.append(checked(folder.load("Helped")).fingerprint)
    assert len(set(prints)) == 2


def averaged(net):
    return {
        name: value * 2 if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }


WRAPPINGS = {
    "model": lambda state: {"model": state, "epoch": 3, "optimizer": {"param_groups": []}},
    "epoch beside": lambda state: {**state, "epoch": 3},
    "betas beside": lambda state: {**state, "betas": torch.linspace(0.001, 0.3, 20)},
    "in a process": lambda state: {
        "betas": torch.linspace(0.001, 0.3, 20),
        **{f"model.{n}": v for n, v in state.items()},
    },
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_what_training_code_wraps_weights_in(folder, net, wrap):
    folder.save(wrap(net.state_dict()))
    same_outputs(folder.load(), net)


def test_a_network_inside_the_module_that_trains_it(folder, net):
    """As minDiffusion publishes it: tables of T + 1 entries beside it, and time as t / T."""
    folder.code(
        "from net import Net, torch\nif __name__ == '__main__': import of_training", "model.py"
    )
    folder.code(
        """
        from model import Net
        class Shares(Net):
            def forward(self, x, t): return super().forward(x, (20 * t).round().long() - 1)
        """,
        "adapter.py",
    )
    beta = torch.cat([torch.zeros(1), torch.linspace(0.001, 0.3, 20)])
    tables = {"beta_t": beta, "alphabar_t": (1 - beta).cumprod(0)}
    state = {**{f"eps_model.{n}": v for n, v in net.state_dict().items()}, **tables}
    save_file(state, folder.path / "model.safetensors")
    how = {**SETTINGS, "network": f"{folder.path / 'adapter.py'}:Shares", "time_input": "fraction"}
    checkpoint = load_checkpoint(folder.path / "model.safetensors", CheckpointSettings(**how))
    x_t, t = torch.randn(3, 1, 6, 6), torch.tensor([1, 7, 20])
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.model_output(x_t, t), net(x_t, t - 1))
    assert not any("tables" in note for note in checkpoint.notes)


ADAPTER = """
class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def forward(self, x_t, time):
        return self.net(x_t, time)
class InTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.wrapped = Adapter()
    def forward(self, x_t, time):
        return self.wrapped(x_t, time)
class Table(Adapter):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(3))
class OwnTable(Adapter):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(3), persistent=False)
"""
PREFIXES = ("", "module.", "net.", "_orig_mod.module.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["Net", "Adapter", "InTwo"])
def test_names_less_one_prefix_are_the_network_s(folder, net, name, prefix):
    """The network's, as an adapter's self.net gives it; the file's; or both."""
    folder.add(ADAPTER)
    folder.save({prefix + n: v for n, v in net.state_dict().items()})
    checkpoint = folder.load(name)
    same_outputs(checkpoint, net)
    is_added = name != "Net" and not (name == "Adapter" and prefix == "net.")
    assert any("the network's names" in note for note in checkpoint.notes) == is_added


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "last.bias"), ["weight net.last.bias missing", "not the weights of"]),
        (
            lambda s: {**{f"a.{n}": v for n, v in s.items()}, "b.weight": torch.zeros(3)},
            ["b.weight is beside", "NAME(state)"],
        ),
        (
            lambda s: {f"{p}.{n}": v + k for k, p in enumerate("ab") for n, v in s.items()},
            ["several sets", "(a., b.)"],
        ),
    ],
)
def test_a_prefix_makes_no_other_network_fit(folder, net, change, words):
    """One missing, one beside it: none is read in part."""
    folder.add(ADAPTER)
    folder.save(change(net.state_dict()))
    with refused("weights.pt", *words):
        folder.load("Adapter")


def test_what_is_beside_the_weights_and_not_read_is_noted(folder, net):
    prefixed = {f"net.{n}": v for n, v in net.state_dict().items()}
    folder.save({**prefixed, "loss.weight": torch.ones(3), "loss.bias": torch.ones(3)})
    checkpoint = folder.load()
    same_outputs(checkpoint, net)
    assert any(
        "2 tensors beside them (loss.weight, ...) are not read" in n for n in checkpoint.notes
    )
    folder.save({**prefixed, "step": torch.tensor(3), "betas": torch.linspace(0.001, 0.3, 20)})
    assert not any("beside" in note for note in folder.load().notes)


def test_what_an_adapter_adds_is_not_asked_of_the_file(folder, net):
    folder.add(ADAPTER)
    with refused("weight scale missing", "persistent=False"):
        folder.load("Table")
    same_outputs(folder.load("OwnTable"), net)
    folder.save({**net.state_dict(), "scale": torch.ones(3)})
    with refused("weight scale missing"):
        folder.load("Table")  # no prefix is common to all of its names


@pytest.mark.parametrize("name", ["Net", "Adapter"])
def test_averaged_weights_before_the_last_ones(folder, net, name):
    folder.add(ADAPTER)
    folder.save({"model": net.state_dict(), "ema": averaged(net)})
    checkpoint, raw = folder.load(name), folder.load(name, weights="raw")
    assert torch.equal([*checkpoint.network.parameters()][-2], 2 * net.last.weight)
    assert torch.equal([*raw.network.parameters()][-2], net.last.weight)
    assert (checkpoint.weights, raw.weights) == ("ema", "raw")
    assert checkpoint.fingerprint != raw.fingerprint


def test_a_function_of_the_state_is_given_all_that_the_file_holds(folder, net):
    folder.save({"settings": {"width": 4}, "best": {"weights": net.state_dict()}})
    folder.add("""
        def build(state):
            net = Net(**state["settings"])
            net.load_state_dict(state["best"]["weights"])
            return net
    """)
    same_outputs(folder.load("build"), net)
    with refused("`weights=ema`", "build", "leave out `weights`"):
        folder.load("build", weights="ema")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("name", ["Net", "on_meta"])
def test_rounded_weights_are_computed_with_in_32_bits_and_noted(folder, net, name, dtype):
    folder.add(BUILDERS["on meta"].replace("build", "on_meta"))
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in net.state_dict().items()}
    folder.save(state)
    checkpoint = folder.load(name)
    for weight, own in zip(checkpoint.network.parameters(), net.parameters(), strict=True):
        assert torch.equal(weight, own.to(dtype).float())
    assert any(str(dtype).removeprefix("torch.") in note for note in checkpoint.notes)


def test_buffers_that_are_masks_and_counts_are_no_damage(folder, net):
    folder.add("""
        class Masked(Net):
            def __init__(self):
                super().__init__()
                self.register_buffer("mask", torch.zeros(3, 3))
    """)
    mask = torch.full((3, 3), -torch.inf).triu(1)
    folder.save({**net.state_dict(), COUNT: net.state_dict()[COUNT].int(), "mask": mask})
    checkpoint = folder.load("Masked")
    assert torch.equal(checkpoint.network.mask, mask)
    same_outputs(checkpoint, net)
    folder.save({**net.state_dict(), "mask": -mask})
    with refused("mask holds NaN or infinite"):
        folder.load("Masked")


def test_what_a_module_keeps_besides_tensors_is_its_own(folder, net):
    folder.add("""
        class Extra(Net):
            def get_extra_state(self): return {"version": 3}
            def set_extra_state(self, state): pass
        def build(state):
            net = Extra()
            net.load_state_dict(state)
            return net
    """)
    folder.save({**net.state_dict(), "_extra_state": {"version": 3}})
    same_outputs(folder.load("build"), net)
    folder.save({**net.state_dict(), "_extra_state": torch.ones(1)})
    same_outputs(folder.load("Extra"), net)


def test_buffers_are_the_schedule(folder, net):
    betas = torch.linspace(0.002, 0.2, 20, dtype=torch.float64)
    folder.save({**net.state_dict(), "betas": betas})
    assert torch.equal(folder.load(schedule="buffers").schedule.betas, betas)
    other = folder.load()
    assert any("not that of the tables in the file" in note for note in other.notes)
    agreeing = folder.load(schedule="linear:20:0.002:0.2")
    assert not any("tables" in note for note in agreeing.notes)


def test_attributes_say_what_an_image_is(folder, net):
    folder.add("""
        class Said(Net):
            image_channels, image_size, num_classes = 1, 6, 3
            def forward(self, x, t, y):
                return super().forward(x, t + y)
    """)
    checkpoint = folder.load("Said")
    assert (checkpoint.channels, checkpoint.image_size, checkpoint.num_classes) == (1, 6, 3)
    x_t, t, y = torch.randn(2, 1, 6, 6), torch.tensor([1, 2]), torch.tensor([2, 0])
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.model_output(x_t, t, y), net(x_t, t - 1 + y))


def test_samples_of_unknown_images_name_the_attribute(folder):
    folder.add("class Any(Net): image_channels = image_size = None")
    settings = db.SampleSettings(image_size=6)
    with refused("net.py:Any", "how many channels", "attribute image_channels = 3"):
        db.generate_samples(folder.load("Any"), 1, settings=settings, device="cpu")
    folder.add("class Gray(Net): image_size = None")
    images = db.generate_samples(folder.load("Gray"), 1, settings=settings, device="cpu").images
    assert images.pixels.shape == (1, 1, 6, 6)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("image_size", *pair) for pair in (("(32, 16)", (32, 16)), ("[6, 6.0]", 6))),
        *(("image_size", value, None) for value in ("(6, 0)", "(6,)", "'6'")),
        *(("null_class", value, 3) for value in ("3.0", "np.int64(3)", "torch.tensor(3)")),
        *(("null_class", value, None) for value in ("True", "-3", "2.5", "(3, 3)", "'3'")),
    ],
)
def test_numbers_of_whatever_kind_describe_the_input(folder, name, value, expected):
    folder.add(f"import numpy as np\nclass Described(Net): {name} = {value}\n")
    assert getattr(folder.load("Described"), name) == expected


# ---- whose code it is


@pytest.mark.parametrize("module", ["sizes_of_net", "blocks_of_net/sizes"])
def test_files_and_folders_beside_it_are_its_own(
    folder, net, module, monkeypatch, tmp_path_factory
):
    """Two folders with files of the same names do not see each other's."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    other = Own(tmp_path_factory.mktemp("other"))
    for place, width in ((folder, 4), (other, 5)):
        (place.path / module).parent.mkdir(exist_ok=True)
        place.code(f"WIDTH = {width}\n", f"{module}.py")
        name = module.replace("/", ".")
        place.add(f"from {name} import WIDTH\ndef build(): return Net(WIDTH)\n")
    same_outputs(folder.load("build"), net)
    with refused("size mismatch"):
        other.load("build")
    same_outputs(folder.load("build"), net)


def test_modules_of_the_current_folder_are_found_too(folder, net, monkeypatch, tmp_path):
    package = tmp_path / "models_of_mine"
    package.mkdir()
    folder.code(NET, "models_of_mine/net.py")
    (package / "main.py").write_text("from models_of_mine.net import Net")
    monkeypatch.chdir(tmp_path)
    settings = CheckpointSettings(network="models_of_mine/main.py:Net", **SETTINGS)
    same_outputs(load_checkpoint("weights.pt", settings), net)


def test_relative_imports_of_a_package(folder, net):
    package = folder.path / "package_of_mine" / "models"
    package.mkdir(parents=True)
    for place in (package.parent, package):
        (place / "__init__.py").touch()
    folder.code(NET, "package_of_mine/net.py")
    (package / "main.py").write_text("from ..net import Net")
    settings = CheckpointSettings(network=f"{package / 'main.py'}:Net", **SETTINGS)
    checkpoint = load_checkpoint(folder.path / "weights.pt", settings)
    same_outputs(checkpoint, net)
    folder.code(NET.replace("return ", "return 2 * "), "package_of_mine/net.py")
    again = load_checkpoint(folder.path / "weights.pt", settings)
    assert checked(checkpoint).fingerprint != checked(again).fingerprint


def test_what_was_imported_and_searched_before_is_as_it_was(folder, monkeypatch):
    folder.code("VALUE = 1\n", "module_of_mine.py")
    folder.add("import module_of_mine\nassert module_of_mine.VALUE == 1")
    mine = object()
    monkeypatch.setitem(sys.modules, "module_of_mine", mine)
    path = list(sys.path)
    folder.load()
    assert sys.modules["module_of_mine"] is mine
    assert sys.path == path


def test_the_code_enters_the_fingerprint(folder):
    first = folder.load()
    assert first.fingerprint == folder.load().fingerprint
    folder.add("# now with a remark")
    assert first.fingerprint != folder.load().fingerprint
    assert first.record["network"] == folder.option()


def test_two_functions_of_one_file_are_two_networks(tmp_path):
    two = "def once(): return Net()\ndef twice(): return Net()\n"
    (tmp_path / "moved").mkdir()
    folder, moved = Own(tmp_path, two), Own(tmp_path / "moved", two)
    once = folder.load("once")
    assert once.fingerprint != folder.load("twice").fingerprint
    assert once.fingerprint == moved.load("once").fingerprint


LAZY = """
class Lazy(Net):
    def forward(self, x, t):
        from lazy_of_net import FACTOR
        return super().forward(x, t) * FACTOR
"""


def test_what_a_call_imports_is_its_own_and_counts(folder, net, monkeypatch, tmp_path_factory):
    """Also in another folder, and where another file has called for a module of that name."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    other = Own(tmp_path_factory.mktemp("other"))
    for place, factor in ((folder, 2), (other, 3)):
        place.code(f"FACTOR = {factor}\n", "lazy_of_net.py")
        place.add(LAZY)
    x_t, t, path = torch.randn(2, 1, 6, 6), torch.tensor([1, 20]), list(sys.path)
    for checkpoint, factor in ((folder.load("Lazy"), 2), (other.load("Lazy"), 3)):
        with torch.no_grad(), evaluating_checkpoint(checkpoint):
            found = checkpoint.model_output(x_t, t)
            torch.testing.assert_close(found, factor * net(x_t, t - 1))
        assert sys.path == path
        assert "lazy_of_net" not in sys.modules
    before = checked(folder.load("Lazy")).identity
    folder.code("FACTOR = 4\n", "lazy_of_net.py")
    after = checked(folder.load("Lazy")).identity
    assert not same_output(before["network_output"], after["network_output"])


# ---- what is refused


@pytest.mark.parametrize("missing", [*SETTINGS, "all"])
def test_what_no_file_says_must_be_said_at_once(folder, missing):
    names = SETTINGS if missing == "all" else (missing,)
    with pytest.raises(MissingSettingsError) as caught:
        folder.load(**dict.fromkeys(names))
    assert set(caught.value.missing) == set(names)
    assert all(f"`{name}=" in str(caught.value) for name in names)
    assert "\n" not in str(caught.value)
    assert "first.weight" in caught.value.weights


def test_tables_in_the_file_are_proposed(folder, net):
    folder.save({**net.state_dict(), "betas": torch.linspace(0.001, 0.3, 20)})
    with refused("`schedule=buffers`"):
        folder.load(schedule=None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Nett", ["has no Nett", "Net"]),
        ("torch", ["torch is <module"]),
        ("net", ["net is a network that is built already"]),
        ("WIDTH", ["WIDTH is 4"]),
        ("Wide", ["without width, depth", "def build(): return Wide(...)"]),
        ("One", ["without width", "def build(): return One(...)"]),
        ("two", ["without a, b"]),
        ("key", ["without state"]),
        ("nothing", ["gives None, not a torch module", "return the network"]),
        ("deep", ["net.py, line ", "ZeroDivisionError"]),
        ("lazy", ["lazy layers"]),
        ("zeros", ["all weights are zero"]),
    ],
)
def test_what_the_name_may_not_be(folder, name, words):
    folder.add("""
        WIDTH = 4
        net = Net()
        class Wide(Net):
            def __init__(self, width, depth): super().__init__(width)
        class One(Net):
            def __init__(self, width): super().__init__(width)
        def two(a, b): return Net()
        def key(*, state): return Net()
        def nothing(): Net()
        def deep(): return inner()
        def inner(): return 1 / 0
        def lazy(): return nn.LazyConv2d(3, 3)
        def zeros(state):
            net = Net()
            for weight in net.parameters(): nn.init.zeros_(weight)
            return net
    """)
    with refused(f"`network={folder.option(name)}`", *words):
        folder.load(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import torch\ndef build(:\n", ["net.py, line 2", "SyntaxError"]),
        (
            "import torch\n\nimport no_such_thing\n",
            ["net.py, line 3", "no_such_thing", "own"],
        ),
        ("from .blocks import Block\n", ["net.py, line 1", "relative import", "an __init__.py"]),
        (
            "import argparse\np = argparse.ArgumentParser()\n"
            "p.add_argument('--data', required=True)\np.parse_args()\n",
            ["net.py, line 4", "ends the program"],
        ),
        ("x = 1\0\n", ["null bytes"]),
        ("", ["has no Net", "no class and no function"]),
    ],
)
def test_a_file_that_fails(folder, capfd, text, words):
    (folder.path / "net.py").write_text(text)
    with refused("`network=", "net.py:Net`", *words):
        folder.load()
    assert capfd.readouterr().err.count("\n") <= 3


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("{}/net.py", ["add what builds", "it defines Net"]),
        ("{}/nowhere.py:Net", ["no such file"]),
        ("{}/net.py:", ["FILE.py:NAME"]),
        ("{}/net.py:a.b", ["FILE.py:NAME"]),
        ("{}/weights.pt:Net", ["FILE.py:NAME"]),
        ("package.net:Net", ["FILE.py:NAME"]),
        ("Net", ["FILE.py:NAME"]),
        ("", ["FILE.py:NAME"]),
        ("{}:Net", ["FILE.py:NAME"]),
    ],
)
def test_an_option_that_names_no_network(folder, option, words):
    option = option.format(folder.path)
    with refused(f"`network={option}`", *words):
        load_checkpoint(folder.path / "weights.pt", CheckpointSettings(network=option, **SETTINGS))


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def test_averages_of_the_parameters_alone_say_that_the_buffers_are_missing(folder, net):
    parameters = {name: 2 * value.detach() for name, value in net.named_parameters()}
    words = ["norm.running_mean and 1 more missing", "not the weights", "NAME(state)"]
    folder.save(parameters)
    with refused("weights.pt", *words):
        folder.load()
    folder.save({"model": net.state_dict(), "ema": parameters})
    for weights in (None, "ema"):
        with refused("weights.pt", *words, "averaged weights (ema)", "`weights=raw`"):
            folder.load(weights=weights)
    same_outputs(folder.load(weights="raw"), net)
    folder.add("""
        def join(state):
            net = Net()
            net.load_state_dict({**state["model"], **state["ema"]})
            return net
    """)
    joined = folder.load("join").network
    assert torch.equal(joined.last.weight, 2 * net.last.weight)
    assert torch.equal(joined.norm.running_mean, net.norm.running_mean)


COUNTS = {
    "missing": lambda count: {},
    "float": lambda count: {COUNT: count.float()},
    "averaged": lambda count: {COUNT: torch.tensor(2.7, dtype=torch.float64)},
    "NaN": lambda count: {COUNT: torch.tensor(torch.nan)},
    "int32": lambda count: {COUNT: count.int()},
    "in a list": lambda count: {COUNT: count[None]},
}


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_the_count_of_batches_may_be_any_number_or_missing(folder, net, count):
    """It enters no output in evaluation."""
    average = {**without(net.state_dict(), COUNT), **count(net.state_dict()[COUNT])}
    folder.add(ADAPTER)
    for content in (average, {"model": {n: v + 1 for n, v in average.items()}, "ema": average}):
        folder.save(content)
        for name in ("Net", "Adapter"):
            same_outputs(folder.load(name), net)


def test_what_network_does_not_go_with(folder, small_checkpoint, tmp_path):
    settings = CheckpointSettings(network=folder.option(), **SETTINGS)
    with refused(f"`network={folder.option()}`", "`ckpt=FILE`"):
        load_checkpoint("default", settings)
    for missing in ("owner/name", "missing.pt"):
        with refused(f"{missing}: no such file; name the file", "leave out `ckpt`"):
            load_checkpoint(missing, settings)
    with refused(tmp_path, "a file of weights in it"):
        load_checkpoint(tmp_path, settings)
    with refused(small_checkpoint, "leave out"):
        load_checkpoint(small_checkpoint, settings)
    with refused("`model_flags`", "leave them out"):
        folder.load(model_flags="--image_size 8")


def test_a_load_state_dict_that_returns_nothing_is_one_line(folder):
    folder.add("""
        class Silent(Net):
            def load_state_dict(self, *args, **kwargs):
                super().load_state_dict(*args, **kwargs)
    """)
    with refused("net.py:Silent", "weights.pt does not fit: TypeError"):
        folder.load("Silent")
