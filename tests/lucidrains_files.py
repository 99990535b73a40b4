"""Files of lucidrains' package, saved by its own Trainer."""

import warnings

import numpy as np
import torch
from PIL import Image

with warnings.catch_warnings():
    # what the package's own imports warn of is not ours to mend
    warnings.simplefilter("ignore")
    from denoising_diffusion_pytorch import (
        GaussianDiffusion,
        LearnedGaussianDiffusion,
        Trainer,
        Unet,
    )
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as package

SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 6}  # of 4 memory keys

STEPS = torch.tensor([1, 2, 17, 39, 40])


def diffusion(unet=(), seed=0, **settings):
    """Their process around their network of random weights, the gains too; for images of 8x8."""
    arguments = SMALL | dict(unet)
    kind = LearnedGaussianDiffusion if arguments.get("learned_variance") else GaussianDiffusion
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(Unet(**arguments), **{"image_size": 8, "timesteps": 40} | settings)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def trainer(folder, model, **settings):
    """Their Trainer of it, on images of noise."""
    images = folder / "images"
    if not images.is_dir():
        images.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(images / f"{index}.png")
    return Trainer(
        model,
        images,
        results_folder=folder / "results",
        calculate_fid=False,
        num_samples=1,
        **settings,
    )


def saved(folder, model, **settings):
    """The file that their Trainer saves of this model and of an average that differs from it."""
    made = trainer(folder, model, **settings)
    for parameter in made.ema.ema_model.parameters():
        parameter.data *= 1.1
    made.save(1)
    return folder / "results" / "model-1.pt", made.ema.ema_model.eval()


def trained(folder, model, monkeypatch):
    """The file that their Trainer saves after three steps."""
    monkeypatch.setattr(package, "cpu_count", lambda: 0)  # images are loaded without processes
    made = trainer(folder, model, train_num_steps=3, save_and_sample_every=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their loader's, of a machine without a GPU
        made.train()
    return folder / "results" / "model-1.pt", made.ema.ema_model.eval()


def bare(folder, model):
    """The state dict of a process alone, as users save it."""
    torch.save(model.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def edited(path, target, change, **fields):
    """The same file with its average's weights, under the process's names, changed."""
    content = torch.load(path, weights_only=True) | fields
    ema = content["ema"]
    names = {name.removeprefix("ema_model."): ema.pop(name) for name in [*ema] if "ema_" in name}
    ema |= {f"ema_model.{name}": value for name, value in change(names).items()}
    torch.save(content, target)
    return target


def noised(channels=3, seed=1):
    return torch.randn(5, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
