"""`ddpmbench convert`: what it prints, and one line for what it refuses."""

import json

import pytest
import torch
from peers import openai_weights, same_weights
from safetensors.torch import load_file

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.files import sha256_of

FLAGS = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 "
    "--attention_resolutions 4 --learn_sigma True --rescale_timesteps True"
)


def test_what_is_printed(invoke, small_checkpoint, tmp_path):
    status, out, err = invoke("convert", small_checkpoint, tmp_path / "model")
    assert (status, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["read", "written", "verified"]
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    assert f"{tmp_path / 'model'} (diffusers, {sha256_of(weights)[:12]})" in out
    assert f"{small_checkpoint} (native, {sha256_of(small_checkpoint)[:12]})" in out


def test_the_object_and_the_path_alone(invoke, completed, small_checkpoint, tmp_path):
    place = tmp_path / "again.safetensors"
    out, _ = completed("convert", small_checkpoint, place, "--format", "json")
    result = json.loads(out)
    assert result["written"] == {
        "source": str(place),
        "family": "native",
        "sha256": sha256_of(place),
    }
    assert result["source"]["sha256"] == sha256_of(small_checkpoint)
    status, out, _ = invoke(
        "convert", small_checkpoint, place, "--format", "quiet", "--overwrite", "--to", "native"
    )
    assert (status, out) == (0, f"{place}\n")


def test_options_of_the_checkpoint_hold_for_what_is_written(completed, tmp_path):
    path, out = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save(openai_weights(), path)
    _, err = completed("convert", path, out, "--model-flags", FLAGS, "--prediction", "v")
    assert "Note: --prediction v overrides eps" in err
    written = load_checkpoint(out)
    assert written.prediction == "v"
    assert same_weights(written, load_checkpoint(path, CheckpointSettings(model_flags=FLAGS)))
    assert "schedule.betas" in load_file(out)


def test_the_checkpoint_of_the_package(invoke, tmp_path):
    assert invoke("convert", "default", tmp_path / "model.safetensors")[0] == 0
    status, _, err = invoke("convert", tmp_path / "model.safetensors", tmp_path / "model")
    assert (status, err) == (0, "")
    assert same_weights(load_checkpoint(), load_checkpoint(tmp_path / "model"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{small}", "{there}"], ["OUT {there}", "--overwrite"]),
        (["{small}", "{there}", "--overwrite", "--to", "native"], ["{there}", ".safetensors"]),
        (["{small}", "{there}", "--overwrite"], ["{there}", "thesis.tex"]),
        (["{small}", "{new}.safetensors", "--to", "diffusers"], ["{new}", "folder"]),
        (["{small}", "{new}", "--to", "onnx"], ["--to", "onnx"]),
        (["{small}", "{new}", "--time-inputs", "index"], ["--time-inputs"]),
        (["{small}", "{new}", "--prediction", "previous_mean"], ["{small}", "previous_mean"]),
        (["{small}", "{new}", "--variance", "learned"], ["--variance learned"]),
        (["{small}", "{new}", "--timesteps", "5"], ["--timesteps"]),
        (["{small}", "{new}", "--format", "csv"], ["--format"]),
        (["{small}"], ["OUT"]),
        (["{small}", "{new}.pt"], ["OUT {new}.pt", "{new}.safetensors", "--to diffusers"]),
        (["{small}", ".", "--overwrite"], ["OUT .", "no name"]),
        (["nowhere.pt", "{new}"], ["Error: nowhere.pt: no such file or folder"]),
        (["{openai}", "{new}"], ["{openai}", "--model-flags"]),
        (["{openai}", "{new}", "--model-flags", FLAGS + " --diffusion_steps 4000"], ["999.75 at"]),
        (
            ["{openai}", "{new}", "--model-flags", f"{FLAGS} --timestep_respacing 50"],
            ["{openai}", "convert the original"],
        ),
    ],
)
def test_what_is_refused(invoke, small_checkpoint, tmp_path, monkeypatch, arguments, words):
    openai, there, here = tmp_path / "model.pt", tmp_path / "there", tmp_path / "here"
    torch.save(openai_weights(), openai)
    for folder in (there, here):
        folder.mkdir()
    (there / "thesis.tex").touch()
    monkeypatch.chdir(here)
    names = {"small": small_checkpoint, "openai": openai, "there": there, "new": "new"}
    status, out, err = invoke("convert", *(word.format(**names) for word in arguments))
    assert (status, out) == (2, "")
    *notes, line = err.splitlines()
    assert line.startswith("Error: ")
    assert all(note.startswith("Note: ") for note in notes)
    for word in words:
        assert word.format(**names) in line, line
    assert not list(here.iterdir())
    assert [path.name for path in there.iterdir()] == ["thesis.tex"]
