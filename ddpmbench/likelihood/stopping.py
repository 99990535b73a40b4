"""When a sampled run has enough rotations."""

from ddpmbench.likelihood.sampled_bound import SampledBound
from ddpmbench.likelihood.warp import RotatedWarp, decoder_draws, num_rows

FIRST_ROWS = 400


def first_rotations(num_images: int) -> int:
    """How many rotations to compute before looking how wide the interval is: `FIRST_ROWS` rows.

    To stop where the interval happens to be narrow makes it too narrow unless its width is known
    well by then; at 8 images with two rotations it covered 88 %.
    """
    return max(2, -(-FIRST_ROWS // num_images))


def first_rows(num_images: int) -> int:
    """How many rows there are at that look."""
    return num_rows(num_images, first_rotations(num_images))


def rotations_needed(design: RotatedWarp, bound: SampledBound, half_width: float) -> int:
    """How many rotations the next look should have: those there are where they suffice.

    Begin with `first_rotations`. Look, extend the design to this number, compute the new rows, and
    look again, until it is the number there is. It at most doubles from look to look, because what
    a first look has of the variance may be little. The interval at which this ends covers as one
    that was not chosen.

    Args:
        design: the rows the bound was estimated from.
        bound: the estimate.
        half_width: the interval for this image set that is wanted, nats per dimension.

    Raises:
        ValueError: the half width is not positive.
    """
    if not half_width > 0:
        raise ValueError(f"half_width must be positive, not {half_width}")
    rotations = design.rotations
    if rotations < first_rotations(design.num_images):
        return first_rotations(design.num_images)
    if bound.half_width <= half_width:
        return rotations
    goal = (bound.kl_variance + bound.decoder_variance) * (half_width / bound.half_width) ** 2
    for more in range(rotations + 1, 2 * rotations):
        draws = decoder_draws(rotations) / decoder_draws(more)
        if bound.kl_variance * rotations / more + bound.decoder_variance * draws <= goal:
            return more
    return 2 * rotations
