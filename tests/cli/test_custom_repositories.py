"""Networks as people publish them are evaluated as docs/reference/checkpoints.md describes."""

import dataclasses
import textwrap
from collections.abc import Callable

import pytest
import torch
from custom_networks import bound_of, opened

from ddpmbench.execution.devices import evaluating_checkpoint


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository, and how it is evaluated.

    Attributes:
        code: of its model file, model.py.
        trained: an expression for what is trained, with what the file defines.
        save: writes what the training script does into a folder, and returns what to pass.
        network: NAME of `--network`.
        adapter: what the user adds, in adapter.py beside it; empty where nothing is needed.
        options: of `nll` besides.
        prediction: calls what was trained on x_t and one-based t of T = 20.
    """

    code: str
    trained: str
    save: Callable
    network: str
    adapter: str
    options: dict
    prediction: Callable

    def write(self, folder):
        """The model with weights, and the arguments that name it."""
        (folder / "model.py").write_text(textwrap.dedent(self.code))
        if self.adapter:
            (folder / "adapter.py").write_text(textwrap.dedent(self.adapter))
        spaces = {"__name__": "model"}
        exec(textwrap.dedent(self.code), spaces)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = eval(self.trained, spaces).eval()
        ckpt = self.save(folder, model)
        file = folder / ("adapter.py" if self.adapter else "model.py")
        words = ["--ckpt", ckpt, "--network", f"{file}:{self.network}"]
        for name, value in {**SAID, **self.options}.items():
            words += [name, value]
        return model, words


SAID = {
    "--schedule": "linear:20:0.001:0.3",
    "--prediction": "eps",
    "--variance": "fixed_large",
    "--time-input": "index",
    "--data-range": "-1,1",
}


def saved_as(name, content=lambda model: model.state_dict()):
    def save(folder, model):
        torch.save(content(model), folder / name)
        return folder / name

    return save


NAIVE = """
    import torch
    import torch.nn as nn

    class TimeSiren(nn.Module):
        def __init__(self, emb_dim):
            super().__init__()
            self.lin1 = nn.Linear(1, emb_dim, bias=False)
            self.lin2 = nn.Linear(emb_dim, emb_dim)

        def forward(self, x):
            x = x.view(-1, 1)
            return self.lin2(torch.sin(self.lin1(x)))

    class NaiveUnet(nn.Module):
        def __init__(self, in_channels, out_channels, n_feat=8):
            super().__init__()
            self.in_channels, self.out_channels, self.n_feat = in_channels, out_channels, n_feat
            self.init_conv = nn.Sequential(
                nn.Conv2d(in_channels, n_feat, 3, 1, 1), nn.GroupNorm(4, n_feat), nn.ReLU())
            self.to_vec = nn.Sequential(nn.AvgPool2d(8), nn.ReLU())
            self.timeembed = TimeSiren(n_feat)
            self.up0 = nn.ConvTranspose2d(n_feat, n_feat, 8, 8)
            self.out = nn.Conv2d(2 * n_feat, out_channels, 3, 1, 1)

        def forward(self, x, t):
            x = self.init_conv(x)
            temb = self.timeembed(t).view(-1, self.n_feat, 1, 1)
            up0 = self.up0(self.to_vec(x) + temb)
            return self.out(torch.cat((up0, x), 1))

    class DDPM(nn.Module):
        def __init__(self, eps_model, n_T=20):
            super().__init__()
            self.eps_model, self.n_T = eps_model, n_T
            beta_t = torch.cat([torch.zeros(1), torch.linspace(0.001, 0.3, n_T)])
            self.register_buffer("beta_t", beta_t)
            self.register_buffer("alphabar_t", (1 - beta_t).cumprod(0))
            self.criterion = nn.MSELoss()

    if __name__ == "__main__":
        import tqdm_that_is_not_installed
"""
POSITIONS = """
    import math
    import torch
    from functools import partial
    from torch import nn, einsum

    class SinusoidalPositionEmbeddings(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim = dim
        def forward(self, time):
            half_dim = self.dim // 2
            embeddings = math.log(10000) / (half_dim - 1)
            embeddings = torch.exp(torch.arange(half_dim, device=time.device) * -embeddings)
            embeddings = time[:, None] * embeddings[None, :]
            return torch.cat((embeddings.sin(), embeddings.cos()), dim=-1)

    class ConvBlock(nn.Module):
        def __init__(self, dim, dim_out, *, time_emb_dim=None, groups=4):
            super().__init__()
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_emb_dim, dim_out))
            self.proj = nn.Conv2d(dim, dim_out, 3, padding=1)
            self.norm = nn.GroupNorm(groups, dim_out)
            self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()
        def forward(self, x, time_emb=None):
            h = self.norm(self.proj(x)) + self.mlp(time_emb)[:, :, None, None]
            return nn.functional.silu(h) + self.res_conv(x)

    class Unet(nn.Module):
        def __init__(self, dim, out_dim=None, dim_mults=(1, 2), channels=3,
                     self_condition=False):
            super().__init__()
            self.channels = channels
            dims = [dim, *map(lambda m: dim * m, dim_mults)]
            block = partial(ConvBlock, groups=4)
            time_dim = dim * 4
            self.init_conv = nn.Conv2d(channels, dim, 1)
            self.time_mlp = nn.Sequential(SinusoidalPositionEmbeddings(dim),
                nn.Linear(dim, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim))
            self.downs = nn.ModuleList([block(a, b, time_emb_dim=time_dim)
                                        for a, b in zip(dims[:-1], dims[1:])])
            self.final_conv = nn.Conv2d(dims[-1], out_dim or channels, 1)
        def forward(self, x, time, x_self_cond=None):
            x, t = self.init_conv(x), self.time_mlp(time)
            for down in self.downs:
                x = down(x, t)
            return self.final_conv(x)
"""
PERCEPTRON = """
    import argparse
    import numpy as np
    import torch
    from torch import nn

    class PositionalEmbedding(nn.Module):
        def __init__(self, size: int):
            super().__init__()
            self.size = size
        def forward(self, x: torch.Tensor):
            steps = torch.arange(self.size) / self.size
            emb = torch.exp(-torch.log(torch.Tensor([10000.0])) * steps)
            return x.unsqueeze(-1) * emb.unsqueeze(0).to(x.device)

    class MLP(nn.Module):
        def __init__(self, hidden_size: int = 32, hidden_layers: int = 2, emb_size: int = 16):
            super().__init__()
            self.time_mlp = PositionalEmbedding(emb_size)
            layers = [nn.Linear(64 + emb_size, hidden_size), nn.GELU()]
            for _ in range(hidden_layers):
                layers += [nn.Linear(hidden_size, hidden_size), nn.BatchNorm1d(hidden_size)]
                layers += [nn.GELU()]
            layers.append(nn.Linear(hidden_size, 64))
            self.joint_mlp = nn.Sequential(*layers)
        def forward(self, x, t):
            t_emb = self.time_mlp(t)
            return self.joint_mlp(torch.cat((x, t_emb), dim=-1))

    if __name__ == "__main__":
        parser = argparse.ArgumentParser()
        parser.add_argument("--dataset", required=True)
        config = parser.parse_args()
"""
FLAT = """
    from model import MLP
    from torch import nn

    class Images(nn.Module):
        image_channels, image_size = 1, 8

        def __init__(self):
            super().__init__()
            self.net = MLP()

        def forward(self, x_t, time):
            return self.net(x_t.flatten(1), time).view_as(x_t)
"""
ACCELERATED = """
    from diffusers import UNet2DModel

    def create_model():
        return UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
            block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"))
"""
SAMPLE = """
    from model import create_model
    from torch import nn

    class Adapter(nn.Module):
        image_channels, image_size = 1, 8

        def __init__(self):
            super().__init__()
            self.net = create_model()

        def forward(self, x_t, time):
            return self.net(x_t, time).sample
"""
GUIDED = """
    import torch
    from torch import nn

    class UNet_conditional(nn.Module):
        def __init__(self, c_in=1, c_out=1, time_dim=8, num_classes=3, p_uncond=0.1):
            super().__init__()
            self.num_classes = num_classes
            self.null_class = num_classes
            self.inc = nn.Conv2d(c_in, time_dim, 3, padding=1)
            self.bn = nn.BatchNorm2d(time_dim)
            self.label_emb = nn.Embedding(num_classes + 1, time_dim)
            self.outc = nn.Conv2d(time_dim, c_out, 3, padding=1)
            self.time_dim = time_dim

        def pos_encoding(self, t, channels):
            even = torch.arange(0, channels, 2, device=t.device).float()
            inv_freq = 1.0 / (10000 ** (even / channels))
            angles = t.repeat(1, channels // 2) * inv_freq
            return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)

        def forward(self, x, t, y):
            t = t.unsqueeze(-1).type(torch.float)
            t = self.pos_encoding(t, self.time_dim) + self.label_emb(y)
            return self.outc(torch.relu(self.bn(self.inc(x)) + t[:, :, None, None]))
"""
MASKED = """
    import torch
    from torch import nn

    class ContextUnet(nn.Module):
        def __init__(self, in_channels, n_feat=8, n_classes=3):
            super().__init__()
            self.n_classes = n_classes
            self.init_conv = nn.Conv2d(in_channels, n_feat, 3, padding=1)
            self.timeembed = nn.Linear(1, n_feat)
            self.contextembed = nn.Linear(n_classes, n_feat)
            self.out = nn.Conv2d(n_feat, in_channels, 3, padding=1)

        def forward(self, x, c, t, context_mask):
            c = nn.functional.one_hot(c, num_classes=self.n_classes).type(torch.float)
            context_mask = context_mask[:, None].repeat(1, self.n_classes)
            c = c * (-1 * (1 - context_mask))
            h = self.init_conv(x) * self.contextembed(c)[:, :, None, None]
            return self.out(torch.relu(h + self.timeembed(t[:, None])[:, :, None, None]))

    class DDPM(nn.Module):
        def __init__(self, nn_model):
            super().__init__()
            self.nn_model = nn_model
"""
CONTEXT = """
    import torch
    from model import ContextUnet
    from torch import nn

    class Adapter(nn.Module):
        num_classes = null_class = 3

        def __init__(self):
            super().__init__()
            self.net = ContextUnet(1)

        def forward(self, x_t, time, labels):
            dropped = labels == self.null_class
            return self.net(x_t, labels.masked_fill(dropped, 0), time, 1 - dropped.float())
"""


def accelerate_state(folder, model):
    """What `accelerator.save_state` leaves."""
    from safetensors.torch import save_file

    state = folder / "checkpoint-500"
    state.mkdir()
    save_file(model.state_dict(), state / "model.safetensors")
    torch.save({"state": {}, "param_groups": []}, state / "optimizer.bin")
    torch.save({"last_epoch": 3}, state / "scheduler.bin")
    (state / "random_states_0.pkl").write_bytes(b"\x80\x04.")
    return state / "model.safetensors"


REPOSITORIES = {
    "fractions and sines": Repository(
        NAIVE,
        "DDPM(NaiveUnet(1, 1))",
        saved_as("ddpm_mnist.pth"),
        "build",
        "from model import NaiveUnet\ndef build(): return NaiveUnet(1, 1)\n",
        {"--time-input": "fraction"},
        lambda model, x, t: model.eps_model(x, t / 20),
    ),
    "sinusoidal positions": Repository(
        POSITIONS,
        "Unet(8, channels=1)",
        saved_as("model.pth", lambda m: {"epoch": 3, "model_state_dict": m.state_dict()}),
        "build",
        "from model import Unet\ndef build(): return Unet(dim=8, channels=1)\n",
        {},
        lambda model, x, t: model(x, t - 1),
    ),
    "a perceptron": Repository(
        PERCEPTRON,
        "MLP()",
        saved_as("model.pth"),
        "Images",
        FLAT,
        {},
        lambda model, x, t: model(x.flatten(1), t - 1).view_as(x),
    ),
    "a state of accelerate": Repository(
        ACCELERATED,
        "create_model()",
        accelerate_state,
        "Adapter",
        SAMPLE,
        {},
        lambda model, x, t: model(x, t - 1).sample,
    ),
    "a null token": Repository(
        GUIDED,
        "UNet_conditional()",
        saved_as("ckpt.pt", lambda m: {"model": m.state_dict(), "ema_model": m.state_dict()}),
        "UNet_conditional",
        "",
        {"--time-input": "one-based", "--class": "3"},
        lambda model, x, t: model(x, t, torch.full_like(t, 3)),
    ),
    "a context mask": Repository(
        MASKED,
        "DDPM(ContextUnet(1))",
        saved_as("model_39.pth"),
        "Adapter",
        CONTEXT,
        {"--time-input": "fraction", "--class": "1"},
        lambda model, x, t: model.nn_model(x, torch.ones_like(t), t / 20, torch.ones(len(t))),
    ),
}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_it_is_evaluated_as_it_was_trained(small_npz, tmp_path, name):
    """To a number, and with the outputs of the repository's own code."""
    repository = REPOSITORIES[name]
    model, words = repository.write(tmp_path)
    words += ["--data", small_npz, "--num-images", 1]
    assert bound_of(words) > 0
    checkpoint, _ = opened(words)
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 7, 20])
    label = torch.full_like(t, int(repository.options.get("--class", 0)))
    with torch.no_grad(), evaluating_checkpoint(checkpoint):
        output = checkpoint.model_output(x_t, t, label)
        torch.testing.assert_close(output, repository.prediction(model, x_t, t))
