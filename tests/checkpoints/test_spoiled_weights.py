"""Weights that are spoiled, in the files of every family: a line each, which names the weight."""

import pytest
import torch
from lucidrains_files import diffusion
from peers import (
    OPENAI_FLAGS,
    SMALL_UNET,
    diffusers_unet,
    openai_weights,
    pesser_weights,
    random_model,
    random_network,
    refused,
    save_flat,
)
from score_sde_files import CASES, parameters, training_state

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.native import write_native

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)))

    def forward(self, x, t):
        return self.body(x)
"""


def one(change):
    """One weight changed."""
    return lambda state, name: state | {name: change(state[name])}


IN_NO_LIST = {
    "missing": (lambda state, name: {n: w for n, w in state.items() if n != name}, "missing"),
    "left over": (lambda state, name: state | {f"{name}.more": torch.ones(3)}, "more left over"),
    "of another shape": (one(lambda w: torch.cat([w, w])), ""),
}
PLAIN = {
    "NaN": (one(lambda w: w * torch.nan), "NaN"),
    "beyond float16": (one(lambda w: (1e9 * w).half()), "infinite"),
    "integers": (one(torch.Tensor.int), "int32"),
    "all zero": (lambda state, name: {n: 0 * w for n, w in state.items()}, "weights are zero"),
}
SPECIAL = {
    "complex": (one(lambda w: w * 1j), "complex64"),
    "4 bits": (one(lambda w: w.byte().view(torch.float4_e2m1fn_x2)), "float4_e2m1fn_x2"),
    "sparse": (one(torch.Tensor.to_sparse), "sparse_coo); save it with .to_dense()"),
    "without numbers": (one(lambda w: w.to("meta")), "has no numbers (meta device)"),
    "quantized": (
        one(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
        "is quantized (qint8)",
    ),
    "declared huge": (
        one(lambda w: torch.ones(1).as_strided([2**10] * w.ndim, [0] * w.ndim)),
        "1024",
    ),
}
SPOIL = IN_NO_LIST | PLAIN | SPECIAL
"""What spoils a state dict by one of its names, and a word for it."""


def saved(content, folder):
    torch.save(content, folder / "model.pt")
    return folder / "model.pt"


def beside(others):
    """Saved beside the tables of its process."""
    return lambda state, folder: saved({**others(), **state}, folder)


def averages(state, folder):
    average = {"decay": 0.999, "num_updates": 9, "shadow_params": list(state.values())}
    return saved(training_state("vp_ddpm", ema=average), folder)


def native(state, folder):
    write_native(folder / "model.safetensors", random_model(), weights=state)
    return folder / "model.safetensors"


def diffusers(state, folder):
    save_flat(folder, diffusers_unet(SMALL_UNET))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    return folder


def own(state, folder):
    (folder / "net.py").write_text(NET)
    return saved(state, folder)


def own_state():
    space = {}
    exec(NET, space)
    return random_network(space["Net"]).state_dict()


def lucidrains(is_network):
    names = diffusion().state_dict().items()
    return {name: w for name, w in names if name.startswith("model.") == is_network}


LINEAR = {"schedule": "linear:1000", "variance": "fixed_large"}
OWN = {**LINEAR, "prediction": "eps", "time_input": "index", "network": "FOLDER/net.py:Net"}
FLAGS, SCORE = {"model_flags": OPENAI_FLAGS}, {"model_flags": CASES["vp_ddpm"]}
SIGMAS = {"module.sigmas": training_state("vp_ddpm")["model"]["module.sigmas"]}
ROWS = "module.all_modules.8.NIN_0.W"
STATES = {
    "openai": openai_weights,
    "pesser": lambda: pesser_weights(random_model().network),
    "lucidrains": lambda: lucidrains(True),
    "score_sde": lambda: dict(parameters("vp_ddpm")),
    "native": lambda: random_model().network.state_dict(),
    "diffusers": lambda: diffusers_unet(SMALL_UNET).state_dict(),
    "own network": own_state,
}
FILES = [
    ("openai", "middle_block.0.out_layers.3.weight", saved, FLAGS, SPOIL),
    ("pesser", "mid.block_1.conv1.weight", saved, LINEAR, SPOIL),
    ("pesser", "mid.attn_1.k.weight", saved, LINEAR, SPOIL),
    (
        "lucidrains",
        "model.mid_block1.block1.proj.weight",
        beside(lambda: lucidrains(False)),
        {},
        SPOIL,
    ),
    ("score_sde", ROWS, beside(lambda: SIGMAS), SCORE, SPOIL),
    ("score_sde", ROWS, averages, SCORE, PLAIN | SPECIAL),
    ("native", "middle.block_1.conv_1.weight", native, {}, IN_NO_LIST | PLAIN),
    ("diffusers", "mid_block.resnets.0.conv1.weight", diffusers, {}, SPOIL),
    ("own network", "body.0.0.weight", own, OWN, SPOIL),
    ("own network", "body.0.1.running_var", own, OWN, SPOIL),
    ("own network", "body.0.1.num_batches_tracked", own, OWN, {"sparse": SPOIL["sparse"]}),
]
"""The state of a family, one of its weights, how it is saved and what is said of it, and what its
files can hold."""


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("family", "name", "save", "said", "spoiled"),
    [
        pytest.param(*file, spoiled, id=f"{file[0]}, {file[1]}: {spoiled}")
        for *file, can_be in FILES
        for spoiled in ("unspoiled", *can_be)
    ],
)
def test_what_is_spoiled_is_a_line_that_names_the_weight(
    family, name, save, said, spoiled, tmp_path
):
    settings = {of: value.replace("FOLDER", str(tmp_path)) for of, value in said.items()}
    settings, state = CheckpointSettings(**settings), STATES[family]()
    if spoiled == "unspoiled":
        numbers = load_checkpoint(save(state, tmp_path), settings).network.state_dict().values()
        assert torch.isin(state[name], torch.cat([w.flatten() for w in numbers])).all()
        return
    spoil, word = SPOIL[spoiled]
    place = name.removeprefix("module.").removeprefix("model.").rsplit(".", 2)[0]
    with refused(tmp_path, "" if spoiled == "all zero" else place, word):
        load_checkpoint(save(spoil(state, name), tmp_path), settings)
