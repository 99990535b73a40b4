"""The U-Net for the steps of one schedule: what depends on the step alone is worked out once."""

import copy

import torch
from torch import Tensor, nn

from ddpmbench.unet.precision import Precision
from ddpmbench.unet.unet import UNet


class TimedUNet(nn.Module):
    """Gives what the U-Net gives, and takes the step where that takes its time input.

    What the residual blocks make of the time is a table of T rows (20 MB for the network of
    Ho et al.'s CIFAR-10 and T = 1000); where the network is conditioned on classes, the table
    ends before they come in. In 16 bits, all between the first and the last convolution is; those
    two, the last normalization, and the sums of the others stay float32.
    """

    def __init__(
        self,
        unet: UNet,
        times: Tensor,
        *,
        precision: Precision = Precision.FP32,
        channels_last: bool = False,
    ) -> None:
        """Copy the network, unless it can be used as it is.

        Args:
            unet: the network, on its device.
            times: (T,) its time input at steps 1..T.
            precision: what it computes in.
            channels_last: whether the channels of a pixel lie side by side in memory.
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
            # Parameters are copied once each, and never shared with the one who trains them.
            self.unet = copy.deepcopy(unet).requires_grad_(False)
            self.unet.to(memory_format=self._format)
            self._narrow(self.unet)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's output for a batch, each image at its own step.

        Args:
            x_t: (B, C, H, W) float32.
            t: (B,) int64 steps in 1..T.
            labels: (B,) int64 classes, for a class-conditional network.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) where a variance is learned; float32.
        """
        rows = self.table[t - 1]  # type: ignore[index]
        if self.unet.classes is None:
            projections = rows.split(self._sizes, dim=1)
        else:
            embedding = self.unet.embed(rows, labels)
            projections = [p.to(self._dtype) for p in self.unet.project(embedding)]
        return self.unet.body(x_t.contiguous(memory_format=self._format), projections)

    def _narrow(self, unet: UNet) -> None:
        for part in (unet.down, unet.middle, unet.up):
            part.to(self._dtype)
        if unet.classes is not None:
            # What classes enter is worked out for each call, in float32.
            for block in unet.residual_blocks():
                block.time.float()
