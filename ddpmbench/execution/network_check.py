"""The first call of a network that is not of this package, before a run is made of millions.

What the bound and the samples take for granted is looked at with two images: the output is a
tensor of the right shape and finite, does not depend on chance or on the other images of a batch,
and the input is left as it was.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.custom_call import refused_call
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import evaluating_checkpoint, strict_float32
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine import is_out_of_memory
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import TorchDefaults, calling, described_value

_TOLERANCE = 1e-2
"""Of the largest output: what another batch may change by rounding, with much to spare."""


def check_first_call(
    checkpoint: Checkpoint,
    shape: tuple[int, ...],
    *,
    device: torch.device,
    ranks: Ranks | None = None,
) -> None:
    """Call a network of the user's own on two images, and refuse what cannot be evaluated.

    The built-in U-Net is known, and not called; nor does memory that is too small matter here.

    Args:
        checkpoint: the model.
        shape: (C, H, W) of an image.
        device: where it will run.
        ranks: the processes of the run, of which the first calls it; None of a single one.

    Raises:
        InputError: the network fails, or its output is not what the conventions say; one line.
    """
    if isinstance(checkpoint.network, UNet):
        return
    if ranks is None:
        _check(checkpoint, shape, device)
    else:
        ranks.once(lambda: _check(checkpoint, shape, device))


def _check(checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device) -> None:
    first = _FirstCall(checkpoint.to(device), shape, device)
    with (
        torch.inference_mode(),
        torch.random.fork_rng(devices=[]),
        evaluating_checkpoint(checkpoint),
        strict_float32(),
        contextlib.suppress(torch.OutOfMemoryError, MemoryError),
    ):
        first.check()


class _FirstCall:
    """Two images at the first and the last step, together and one alone."""

    def __init__(
        self, checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device
    ) -> None:
        self._checkpoint = checkpoint
        numbers = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
        self._x_t = numbers.to(device)
        steps = torch.tensor([1, checkpoint.schedule.num_timesteps], device=device)
        self._time = checkpoint.network_time(steps)
        last = max(checkpoint.num_classes - 1, 0)
        null = checkpoint.null_class
        self._labels = torch.tensor([0, last if null is None else null], device=device)
        self._who = checkpoint.network_name

    def check(self) -> None:
        checkpoint = self._checkpoint
        why = refused_call(
            checkpoint.network,
            has_classes=bool(checkpoint.num_classes),
            wrapped=checkpoint.code is None,
        )
        if why is not None:
            raise InputError(f"{self._who}: {why}")
        both = self._output(2)
        one = self._output(1)
        self._compare(one, both[:1])

    def _compare(self, alone: Tensor, among: Tensor) -> None:
        """Refuse an output of the same image that differs by more than rounding."""
        if _alike(alone, among):
            return
        if not _alike(alone, self._output(1)):
            raise InputError(
                f"{self._who}: gives another output for the same input each time; chance, such "
                "as F.dropout without training=self.training, has no place in evaluation"
            )
        raise InputError(
            f"{self._who}: an image's output depends on the other images of its batch, as of a "
            "batch normalization that does not heed eval(); the bound is of each image alone"
        )

    def _output(self, rows: int) -> Tensor:
        x_t = self._x_t[:rows].clone()
        inputs = [x_t, self._time[:rows].clone()]
        if self._checkpoint.num_classes:
            inputs.append(self._labels[:rows].clone())
        defaults = TorchDefaults.now()
        with _watching_embeddings(self._checkpoint, inputs[1], self._who):
            try:
                output = calling(lambda: self._checkpoint.network(*inputs), self._who)
            except InputError as error:
                if error.__cause__ is None:
                    raise
                if is_out_of_memory(error.__cause__):
                    raise MemoryError from error
                raise InputError(
                    f"{error}; it was called with {self._shown(inputs)}{_on_gradients(error)}"
                ) from error
        if (call := defaults.changed()) is not None:
            raise InputError(
                f"{self._who}: a call leaves another default of torch behind ({call}), which "
                "would change the evaluation; set it back before it returns"
            )
        found = self._checked(output, x_t)
        if not torch.equal(x_t, self._x_t[:rows]):
            raise InputError(
                f"{self._who}: changes x_t, its input, in place; begin with x_t = x_t.clone() or "
                "write x = x + ... in place of x += ..."
            )
        return found.float()

    def _checked(self, output: object, x_t: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            part = _prediction_in(output, x_t.shape)
            returns = f"self.net(x_t, time){part}" if part else "the prediction alone"
            raise InputError(
                f"{self._who}: gives {described_value(output)}, not a tensor; name an adapter, a "
                f"module with self.net = Net() whose forward(self, x_t, time) returns {returns}"
            )
        batch, channels, *size = x_t.shape
        learned = self._checkpoint.variance.is_learned
        shape = (batch, channels * (2 if learned else 1), *size)
        if output.shape != shape:
            remedy = ""
            if output.shape == (batch, 2 * channels, *size):
                remedy = "; if half of it is a variance, say --variance learned_range or learned"
            elif learned and output.shape == x_t.shape:
                remedy = "; without a variance in it, say --variance fixed_small or fixed_large"
            raise InputError(
                f"{self._who}: gives {tuple(output.shape)} for x_t of {tuple(x_t.shape)}; with "
                f"--variance {self._checkpoint.variance} it takes {shape}{remedy}"
            )
        if not output.is_floating_point():
            kind = str(output.dtype).removeprefix("torch.")
            raise InputError(f"{self._who}: gives {kind}, not floating-point numbers")
        if not bool(output.isfinite().all()):
            raise InputError(
                f"{self._who}: gives NaN or infinite numbers for normal noise as x_t and time "
                f"{self._time.tolist()}"
            )
        return output

    def _shown(self, inputs: list[Tensor]) -> str:
        names = ("x_t", "time", "labels")
        shown = [
            f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in zip(names, inputs, strict=False)
        ]
        low, high = self._time.tolist()
        time = f"--time-input {self._checkpoint.time_input}: {low:g} to {high:g}"
        return f"{', '.join(shown)} ({time})"


@contextlib.contextmanager
def _watching_embeddings(checkpoint: Checkpoint, time: Tensor, who: str) -> Iterator[None]:
    """Inside, a row that an embedding does not have is named, which no device does by itself."""

    def watch(module: nn.Module, inputs: tuple[object, ...], named: Mapping[str, object]) -> None:
        assert isinstance(module, nn.Embedding)
        index = inputs[0] if inputs else named.get("input")
        if not isinstance(index, Tensor) or not index.numel():
            return
        if index.is_floating_point():
            raise InputError(
                f"{who}: an nn.Embedding is given floating-point numbers, and takes whole ones; "
                "with --time-input index time is t - 1, with one-based t, here it is "
                f"{checkpoint.time_input}"
            )
        rows, low, high = module.num_embeddings, int(index.min()), int(index.max())
        if low >= 0 and high < rows:
            return
        line = f"an nn.Embedding of {rows} rows is asked for row {low if low < 0 else high}"
        if index.numel() == time.numel() and bool((index.flatten() == time).all()):
            line += (
                f"; --time-input {checkpoint.time_input} and the schedule's "
                f"{checkpoint.schedule.num_original_timesteps} steps do, and one of the two is not "
                "as it was trained (index counts from 0, one-based from 1)"
            )
        raise InputError(f"{who}: {line}")

    # Subclasses do what they like with what they are given.
    embeddings = [m for m in checkpoint.network.modules() if type(m) is nn.Embedding]
    handles = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _prediction_in(output: object, shape: torch.Size) -> str:
    """What to write behind a call to take the prediction out of what it gives."""
    if isinstance(output, tuple | list):
        parts = [(f"[{index}]", value) for index, value in enumerate(output)]
    elif isinstance(output, Mapping):
        # what diffusers gives is a dict with attributes
        parts = [
            (f".{name}" if hasattr(output, str(name)) else f"[{name!r}]", value)
            for name, value in output.items()
        ]
    else:
        parts = [(f".{name}", value) for name, value in getattr(output, "__dict__", {}).items()]
    fitting = [
        part
        for part, value in parts
        if isinstance(value, Tensor) and value.shape[:1] + value.shape[2:] == shape[:1] + shape[2:]
    ]
    return fitting[0] if len(fitting) == 1 else ""


def _on_gradients(error: InputError) -> str:
    """What to do for a network that differentiates, and cannot here; empty for others."""
    text = str(error.__cause__)
    if not any(word in text for word in ("require grad", "requires_grad", "nference tensor")):
        return ""
    return (
        "; networks are called in torch.inference_mode: take gradients with "
        "torch.inference_mode(False), torch.enable_grad() around them and clones of x_t and time"
    )


def _alike(one: Tensor, other: Tensor) -> bool:
    scale = max(float(one.abs().max()), 1e-6)
    return bool((one - other).abs().max() <= _TOLERANCE * scale)
