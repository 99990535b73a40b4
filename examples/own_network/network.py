"""A network of one's own: what ddpmbench knows nothing of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_TIMESTEPS = 1000


class Block(nn.Module):
    """Two convolutions with the time between them, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(8, inputs)
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(128, outputs)
        self.norm_2 = nn.GroupNorm(8, outputs)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B, 128) to (B, outputs, H, W)."""
        h = self.conv_1(F.silu(self.norm_1(x))) + self.time(time)[:, :, None, None]
        h = self.conv_2(F.silu(self.norm_2(h)))
        return self.shortcut(x) + h  # type: ignore[no-any-return]


class SmallUNet(nn.Module):
    """Predicts the noise in images of 28x28; the steps are rows of an embedding, from 0 on."""

    image_channels = 1
    image_size = 28

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.steps = nn.Embedding(NUM_TIMESTEPS, 128)
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.down = Block(width, width)
        self.middle = Block(width, 2 * width)
        self.up = Block(3 * width, width)
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t (B, 1, 28, 28), where t (B,) int64 counts from 0."""
        time = F.silu(self.steps(t))
        skip = self.down(self.conv_in(F.pixel_unshuffle(x_t, 2)), time)
        h = self.middle(F.avg_pool2d(skip, 2), time)
        h = self.up(torch.cat([F.interpolate(h, scale_factor=2.0), skip], 1), time)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), 2)
