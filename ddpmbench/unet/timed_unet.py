"""The U-Net for the timesteps of one schedule, with a table of time embeddings, in a precision."""

import copy
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn

from ddpmbench.unet.unet import UNet


class Precision(StrEnum):
    """The type of a network's products; sums are at least float32."""

    FP32 = "fp32"
    """float32 without rounding of products: the reference"""
    TF32 = "tf32"
    """float32, whose products may be rounded to 10 bits of mantissa first"""
    BF16 = "bf16"
    """bfloat16: 7 bits of mantissa"""
    FP16 = "fp16"
    """float16: 10 bits of mantissa"""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and activations."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.value, torch.float32)


class TimedUNet(nn.Module):
    """The U-Net as a function of the timestep t instead of its time input.

    The time projections of all residual blocks are a table of T rows (20 MB for Ho et al.'s
    CIFAR-10 network and T = 1000); for a class-conditional network the table holds the embedding
    without the class. In 16 bits the first and last convolution, the last normalization, and all
    sums stay float32.
    """

    def __init__(
        self,
        unet: UNet,
        times: Tensor,
        *,
        precision: Precision = Precision.FP32,
        channels_last: bool = False,
    ) -> None:
        """Copy the network where its layout or precision changes.

        Args:
            unet: the network, on its device.
            times: (T,) its time input at t = 1..T.
            precision: of the products.
            channels_last: whether the channels of a pixel are adjacent in memory.
        """
        super().__init__()
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._dtype = precision.dtype
        with torch.no_grad():
            embedded = unet.embed_time(times)
            if unet.classes is None:
                projections = unet.project(unet.embed(embedded))
                self._sizes = [projection.shape[1] for projection in projections]
                embedded = torch.cat(projections, dim=1).to(self._dtype)
        # (T, K of all blocks), or (T, 4 model_channels).
        self.register_buffer("table", embedded, persistent=False)
        self.unet = unet
        if channels_last or self._dtype is not torch.float32:
            # A copy, because training changes the network's parameters.
            self.unet = copy.deepcopy(unet).requires_grad_(False)
            self.unet.to(memory_format=self._format)
            self._narrow(self.unet)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for a batch, each image at its own timestep.

        Args:
            x_t: (B, C, H, W) float32.
            t: (B,) int64 timesteps in 1..T; or floating point, the time input itself.
            labels: (B,) int64 classes, for a class-conditional network.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) where a variance is learned; float32.
        """
        projections = self._between(t, labels) if t.is_floating_point() else self._at(t, labels)
        return self.unet.body(x_t.contiguous(memory_format=self._format), projections)

    def _at(self, t: Tensor, labels: Tensor | None) -> Sequence[Tensor]:
        rows = self.table[t - 1]  # type: ignore[index]
        if self.unet.classes is None:
            projections: Sequence[Tensor] = rows.split(self._sizes, dim=1)
            return projections
        embedding = self.unet.embed(rows, labels)
        return [p.to(self._dtype) for p in self.unet.project(embedding)]

    def _between(self, time: Tensor, labels: Tensor | None) -> Sequence[Tensor]:
        embedding = self.unet.embed(self.unet.embed_time(time), labels)
        if self.unet.classes is None:
            embedding = embedding.to(self._dtype)
        return [p.to(self._dtype) for p in self.unet.project(embedding)]

    def _narrow(self, unet: UNet) -> None:
        for part in (unet.down, unet.middle, unet.up):
            part.to(self._dtype)
        if unet.classes is not None:
            # With classes, the projections are computed at each evaluation, in float32.
            for block in unet.residual_blocks():
                block.time.float()
