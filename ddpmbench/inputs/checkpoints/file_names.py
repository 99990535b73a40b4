"""What the published codes say of weights by the names of their files and folders.

openai/improved-diffusion and guided-diffusion write `modelSTEP.pt`, `ema_RATE_STEP.pt` and
`optSTEP.pt` side by side; pesser/pytorch_diffusion keeps `ema_diffusion_NAME_model/` beside
`diffusion_NAME_model/`.
"""

import re
from pathlib import Path

_OPENAI_RAW = re.compile(r"model(\d{2,})")
_OPENAI_EMA = re.compile(r"ema_[0-9.]+_(\d{2,})")
_PESSER = re.compile(r"(ema_)?diffusion_\w+_model")
_PESSER_FILE = re.compile(r"model-\d+")
PESSER_NAMES = ("cifar10", "lsun_bedroom", "lsun_cat", "lsun_church")
"""What pesser/pytorch_diffusion calls the models that it publishes."""
_PUBLISHED = re.compile(rf"(ema_)?diffusion_({'|'.join(PESSER_NAMES)})_model")
_SHORT = re.compile(rf"ema_({'|'.join(PESSER_NAMES)})")


def kind(path: Path) -> str | None:
    """Whether the name of a bare state dict says "ema" or "raw"; None if it says neither.

    It does in the words of the projects alone: anybody's file may begin with ema_.
    """
    if _OPENAI_EMA.fullmatch(path.stem) or _SHORT.fullmatch(path.stem):
        return "ema"
    if _OPENAI_RAW.fullmatch(path.stem):
        return "raw"
    if found := _PUBLISHED.fullmatch(path.stem):
        return "ema" if found[1] else "raw"
    if _PESSER_FILE.fullmatch(path.stem):
        if found := _PUBLISHED.fullmatch(path.parent.name):
            return "ema" if found[1] else "raw"
        if (found := _PESSER.fullmatch(path.parent.name)) and not found[1]:
            return "raw"
    return None


def other_weights(path: Path) -> str | None:
    """The file beside, there or to be looked for, that has the weights of the other kind."""
    if found := _OPENAI_EMA.fullmatch(path.stem):
        return f"model{found[1]}.pt"
    if found := _OPENAI_RAW.fullmatch(path.stem):
        return _averaged(path, found[1])
    if found := _PESSER.fullmatch(path.parent.name):
        folder = path.parent.name.removeprefix("ema_") if found[1] else f"ema_{path.parent.name}"
        return f"{folder}/{path.name}"
    return None


def model_beside(path: Path) -> str:
    """What to say of an optimizer's file `optSTEP.pt`: the model that it trained."""
    step = path.stem.removeprefix("opt")
    if not (step.isdecimal() and path.stem.startswith("opt")):
        return "pass the file of the model that it trained"
    names = [_averaged(path, step), f"model{step}.pt"]
    found = next((name for name in names if (path.parent / name).is_file()), None)
    if found is not None:
        return f"the model beside it is {found}"
    return f"pass the model beside it: ema_RATE_{step}.pt or model{step}.pt"


def _averaged(path: Path, step: str) -> str:
    found = sorted(path.parent.glob(f"ema_*_{step}.pt"))
    return found[0].name if found else f"ema_RATE_{step}.pt"
