"""Which of a folder's sets of weights is read: one, a choice that is the user's, or none."""

import shutil
import warnings

import pytest
import torch
from peers import (
    OPENAI_FLAGS,
    SMALL_UNET,
    DDPMScheduler,
    diffusers_unet,
    openai_weights,
    refused,
    same_weights,
    save_flat,
    save_pipeline,
)
from safetensors.torch import load_file, save_file

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.native import write_native
from ddpmbench.checkpoints.settings import MissingSettingsError
from ddpmbench.errors import InputError

STEM = "diffusion_pytorch_model"
EMA, RAW = CheckpointSettings(weights="ema"), CheckpointSettings(weights="raw")
SAID = CheckpointSettings(schedule="linear:1000", prediction="eps", variance="fixed_large")


@pytest.fixture(scope="module")
def peers():
    return diffusers_unet(SMALL_UNET), diffusers_unet(SMALL_UNET, seed=1)


@pytest.fixture
def pipeline(peers, tmp_path):
    return save_pipeline(tmp_path / "model", peers[0])


def contiguous(network):
    return {name: weight.contiguous() for name, weight in network.state_dict().items()}


def single(folder, network, name=f"{STEM}.safetensors"):
    state = contiguous(network)
    save_file(state, folder / name) if name.endswith("s") else torch.save(state, folder / name)
    return folder / name


def shards(folder, network, **more):
    network.save_pretrained(folder / "new", max_shard_size="50KB", **more)
    for file in (folder / "new").iterdir():
        if file.name != "config.json":
            shutil.move(file, folder / file.name)
    shutil.rmtree(folder / "new")
    return next(file for file in folder.iterdir() if ".index." in file.name and file.is_file())


# each saves a second set of weights into the folder of a network, and gives the file that names it
SECOND = {
    "shards": lambda folder, network: shards(folder, network),
    "bin": lambda folder, network: single(folder, network, f"{STEM}.bin"),
    "shards of bin": lambda folder, network: shards(folder, network, safe_serialization=False),
    "variant": lambda folder, network: single(folder, network, f"{STEM}.fp32.safetensors"),
    "shards of a variant": lambda folder, network: shards(folder, network, variant="fp32"),
    "flat beside unet/": lambda folder, network: (
        network.save_pretrained(folder.parent) or folder.parent / f"{STEM}.safetensors"
    ),
}


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
def test_sets_that_differ_are_named_and_one_has_to_be_chosen(second, pipeline, peers):
    first = pipeline / "unet" / f"{STEM}.safetensors"
    other = second(pipeline / "unet", peers[1])
    with refused(pipeline, "differ", f"`ckpt={first}`", f"`ckpt={other}`"):
        load_checkpoint(pipeline)
    for path, peer in ((first, peers[0]), (other, peers[1])):
        read = load_checkpoint(path)
        assert torch.equal(read.network.conv_in.weight, peer.conv_in.weight)
        assert str(path) == read.source
        assert read.files[0].startswith(str(path.parent))
        assert not read.notes


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
def test_of_equal_sets_one_is_read_and_named(second, pipeline, peers):
    whole = load_checkpoint(pipeline)
    other = second(pipeline / "unet", peers[0])
    read = load_checkpoint(pipeline)
    assert same_weights(read, whole)
    (note,) = read.notes
    assert f"unet/{STEM}.safetensors is read; the same are in" in note
    assert note.endswith(str(other.relative_to(pipeline)))
    assert (read.files, read.sha256) == (whole.files, whole.sha256)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_copy_is_the_same_and_the_exact_one_is_read(dtype, pipeline, peers):
    file = pipeline / "unet" / f"{STEM}.safetensors"
    exact = load_file(file)
    name = f"{STEM}.{str(dtype)[6:]}.safetensors"
    save_file({n: w.to(dtype) for n, w in exact.items()}, file.with_name(name))
    whole = load_checkpoint(file)
    for _ in range(2):
        read = load_checkpoint(pipeline)
        assert same_weights(read, whole)
        (note,) = read.notes
        assert note.endswith(", rounded")
        # the plain one may be the rounded one
        exact_file, rounded_file = file.rename(file.with_suffix(".tmp")), file.with_name(name)
        rounded_file.rename(file)
        exact_file.rename(rounded_file)
    off = {n: w.to(dtype) + (0.1 if n == "conv_in.bias" else 0) for n, w in exact.items()}
    save_file(off, file.with_name(name))
    with refused(pipeline, "differ"):
        load_checkpoint(pipeline)


def test_an_index_whose_shards_were_never_copied_is_no_set(pipeline, peers):
    index = shards(pipeline / "unet", peers[1])
    files = [f for f in (pipeline / "unet").iterdir() if "-of-" in f.name]
    for file in files[1:]:
        file.unlink()
    with refused("missing", index.name):
        load_checkpoint(pipeline)
    files[0].unlink()
    read = load_checkpoint(pipeline)
    (note,) = read.notes
    assert note == f"other weights in the folder are not read: unet/{index.name}"
    assert torch.equal(read.network.conv_in.weight, peers[0].conv_in.weight)


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        ("", ".ema", ("raw", "ema")),
        ("", ".non_ema", ("ema", "raw")),
        (".ema", ".non_ema", ("ema", "raw")),
        (".fp16", ".ema_fp16", ("raw", "ema")),
        ("", ".fp16.ema", None),
    ],
)
def test_variants_are_the_two_kinds_of_weights(first, second, kinds, pipeline, peers):
    unet = pipeline / "unet"
    (unet / f"{STEM}.safetensors").rename(unet / f"{STEM}{first}.safetensors")
    single(unet, peers[1], f"{STEM}{second}.safetensors")
    if kinds is None:  # no name that diffusers writes: a file that is not read
        (note,) = load_checkpoint(pipeline).notes
        assert f"unet/{STEM}{second}.safetensors" in note
        assert "not read" in note
        return
    for settings in (CheckpointSettings(), EMA, RAW):
        kind = settings.weights or "ema"
        read = load_checkpoint(pipeline, settings)
        number = kinds.index(kind)
        assert torch.equal(read.network.conv_in.weight, peers[number].conv_in.weight)
        assert read.weights == kind
        name = f"unet/{STEM}{(first, second)[number]}.safetensors"
        assert f"weights: {kind.upper() if kind == 'ema' else kind} ({name})" in read.notes
        assert read.files == (str(pipeline / name),)
    named = load_checkpoint(unet / f"{STEM}{second}.safetensors")
    assert named.weights == kinds[1]


def test_plain_weights_beside_both_kinds_are_a_choice(pipeline, peers):
    unet, third = pipeline / "unet", diffusers_unet(SMALL_UNET, seed=2)
    single(unet, peers[1], f"{STEM}.ema.safetensors")
    single(unet, third, f"{STEM}.non_ema.safetensors")
    with refused(pipeline, "differ", f"{STEM}.safetensors", f"{STEM}.ema.safetensors"):
        load_checkpoint(pipeline)
    for settings, peer in ((EMA, peers[1]), (RAW, third)):
        read = load_checkpoint(pipeline, settings)
        assert torch.equal(read.network.conv_in.weight, peer.conv_in.weight)
    single(unet, peers[1])  # a copy of the average
    assert load_checkpoint(pipeline).weights == "ema"


def test_a_folder_of_averages_has_sets_of_its_own(pipeline, peers):
    shutil.copytree(pipeline / "unet", pipeline / "unet_ema")
    single(pipeline / "unet_ema", peers[1])
    assert load_checkpoint(pipeline).weights == "ema"
    single(pipeline / "unet", peers[0], f"{STEM}.ema.safetensors")
    with refused(pipeline, "differ", f"unet/{STEM}.ema.safetensors", "unet_ema/"):
        load_checkpoint(pipeline)
    read = load_checkpoint(pipeline, RAW)
    assert torch.equal(read.network.conv_in.weight, peers[0].conv_in.weight)


def test_files_that_are_in_no_set_are_noted(pipeline, peers):
    single(pipeline / "unet", peers[1], f"{STEM}-00001-of-00002.safetensors")
    single(pipeline / "unet", peers[1], "model_1.safetensors")
    for name in ("optimizer.bin", "scheduler.pt", "random_states_0.pkl", "rng_state.pth"):
        torch.save({}, pipeline / "unet" / name)
    torch.save({}, pipeline / "best.pt")
    (note,) = load_checkpoint(pipeline).notes
    names = note.removeprefix("other weights in the folder are not read: ").split(", ")
    assert names == [
        f"unet/{STEM}-00001-of-00002.safetensors",
        "unet/model_1.safetensors",
        "best.pt",
    ]


def test_a_native_file_and_a_model_of_diffusers(pipeline, peers, small_model):
    native = pipeline / "checkpoint.safetensors"
    write_native(native, small_model)
    with refused(pipeline, f"`ckpt={native}`", str(pipeline / "unet")):
        load_checkpoint(pipeline)
    assert load_checkpoint(native).family == "native"
    read = load_checkpoint(pipeline / "unet" / f"{STEM}.safetensors")
    assert read.family == "diffusers"


# ---- weights without the folder they belong to


@pytest.fixture
def alone(peers, tmp_path):
    """As accelerate's save_state leaves it."""
    folder = tmp_path / "state"
    folder.mkdir()
    single(folder, peers[0], "model.safetensors")
    torch.save({"state": {}, "param_groups": []}, folder / "optimizer.bin")
    torch.save(contiguous(peers[0]), tmp_path / "unet.pt")
    torch.save({"model": contiguous(peers[0]), "ema": [contiguous(peers[1])]}, tmp_path / "two.pt")
    return folder


def test_weights_alone_say_what_must_lie_beside_them(alone, peers, pipeline):
    files = [alone / "model.safetensors", alone.parent / "unet.pt", alone.parent / "two.pt"]
    for path in (alone, *files):
        with pytest.raises(InputError, match=r"copy its config.json and scheduler") as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)
        assert "weights=raw" not in str(caught.value)  # which lack it as well
    for folder in (alone, alone.parent):
        shutil.copy(pipeline / "unet" / "config.json", folder)
    for path in (alone, *files):
        with pytest.raises(MissingSettingsError, match="missing, so nothing says"):
            load_checkpoint(path)
        assert load_checkpoint(path, SAID).schedule.num_timesteps == 1000
    for folder in (alone, alone.parent):
        shutil.copy(pipeline / "scheduler" / "scheduler_config.json", folder)
    whole = load_checkpoint(pipeline)
    for path in (alone, *files[:2]):
        assert same_weights(load_checkpoint(path), whole)
    average, last = load_checkpoint(files[2]), load_checkpoint(files[2], RAW)
    assert same_weights(last, whole)
    assert torch.equal(average.network.conv_in.weight, peers[1].conv_in.weight)
    assert (average.weights, average.where, last.where) == ("ema", "ema/0", "model")


def test_a_shard_without_its_index_names_what_is_missing(peers, tmp_path):
    index = shards(save_flat(tmp_path, peers[0]), peers[0])
    files = sorted(tmp_path.glob("*-of-*"))
    assert same_weights(load_checkpoint(files[0]), load_checkpoint(tmp_path))
    kept = index.rename(tmp_path / "kept")
    with refused(files[0], "index", "must lie beside it", "pass the folder"):
        load_checkpoint(files[0])
    kept.rename(index)
    (tmp_path / f"{STEM}.safetensors").unlink()
    assert load_checkpoint(tmp_path).files == tuple(map(str, files))


def test_shards_without_a_configuration_ask_for_it(peers, pipeline, tmp_path):
    folder = tmp_path / "run" / "checkpoint-7"
    peers[0].save_pretrained(folder, max_shard_size="50KB")
    (folder / "config.json").unlink()
    for path in (folder, next(folder.glob("*-of-*"))):
        with refused(path, "copy its config.json and scheduler_config.json"):
            load_checkpoint(path)
    with refused(tmp_path / "run", "copy its config.json", str(folder)):
        load_checkpoint(tmp_path / "run")
    shutil.copy(pipeline / "unet" / "config.json", folder)
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", folder)
    assert same_weights(load_checkpoint(folder), load_checkpoint(pipeline))
    with refused(tmp_path / "run", f"pass a folder in it: {folder}"):
        load_checkpoint(tmp_path / "run")


def test_a_pipeline_whose_network_lost_its_configuration(pipeline):
    (pipeline / "unet" / "config.json").unlink()
    with refused(
        pipeline, f"copy its config.json and scheduler_config.json into {pipeline / 'unet'}"
    ):
        load_checkpoint(pipeline)


def test_a_file_of_another_family_beside_a_config(tmp_path, peers):
    save_flat(tmp_path, peers[0])
    torch.save(openai_weights(), tmp_path / "model.pt")
    read = load_checkpoint(tmp_path / "model.pt", CheckpointSettings(model_flags=OPENAI_FLAGS))
    assert read.family == "openai"


@pytest.mark.parametrize("deep", ["", "runs"])
def test_the_folder_of_a_training_names_the_one_in_it(deep, peers, tmp_path):
    for step in (500, 1000):
        save_pipeline(tmp_path / deep / f"checkpoint-{step}", peers[0])
    folders = [tmp_path / deep / f"checkpoint-{step}" for step in (1000, 500)]
    with refused(tmp_path, f"pass a folder in it: {folders[0]}, {folders[1]}"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(folders[0]).family == "diffusers"


def test_a_distributed_checkpoint_is_gathered_as_the_line_says(tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    weights, folder = openai_weights(), tmp_path / "step-10"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": weights}, checkpoint_id=folder, no_dist=True)
    for path in (tmp_path, folder, next(folder.glob("*.distcp"))):
        with refused(path, f"dcp_to_torch {folder} FILE.pt"):
            load_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(folder, tmp_path / "file.pt")  # what the command named calls
    with pytest.raises(MissingSettingsError, match="`model_flags="):
        load_checkpoint(tmp_path / "file.pt")


def test_a_checkpoint_of_deepspeed_names_its_own_script(tmp_path):
    (tmp_path / "zero_to_fp32.py").touch()
    (tmp_path / "global_step10").mkdir()
    torch.save({}, tmp_path / "global_step10" / "mp_rank_00_model_states.pt")
    with refused(tmp_path, f"python {tmp_path / 'zero_to_fp32.py'} {tmp_path} OUT"):
        load_checkpoint(tmp_path)


def test_a_configuration_names_its_folder(pipeline):
    for path in (pipeline / "unet" / "config.json", pipeline / "model_index.json"):
        with refused(path, f"pass the folder: {pipeline}"):
            load_checkpoint(path)


def test_the_scheduler_of_a_flat_folder_may_have_one_of_its_own(peers, tmp_path):
    peers[0].save_pretrained(tmp_path)
    DDPMScheduler(num_train_timesteps=30).save_pretrained(tmp_path / "scheduler")
    assert load_checkpoint(tmp_path).schedule.num_timesteps == 30


def reads(checkpoint, network):
    return torch.equal(checkpoint.network.conv_in.weight, network.conv_in.weight)


@pytest.mark.parametrize("name", ["ema_unet", "ema", "unet-ema", "unet_EMA"])
def test_an_average_beside_the_network_is_one_whatever_its_folder_is_called(pipeline, peers, name):
    peers[1].save_pretrained(pipeline / name)
    for settings, network in {None: peers[1], EMA: peers[1], RAW: peers[0]}.items():
        assert reads(load_checkpoint(pipeline, settings), network)
    chosen = pipeline / name / f"{STEM}.safetensors"
    assert reads(load_checkpoint(chosen), peers[1])


@pytest.mark.parametrize("name", ["unet_old", "best", "model"])
def test_another_network_beside_it_is_a_choice(pipeline, peers, name):
    peers[1].save_pretrained(pipeline / name)
    with refused(name, "unet"):
        load_checkpoint(pipeline)
    for place, network in {"unet": peers[0], name: peers[1]}.items():
        file = pipeline / place / f"{STEM}.safetensors"
        assert reads(load_checkpoint(file), network)
    shutil.copytree(pipeline / "unet", pipeline / name, dirs_exist_ok=True)
    assert reads(load_checkpoint(pipeline), peers[0])
