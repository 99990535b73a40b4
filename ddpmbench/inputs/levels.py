"""Whether images are already what a model of few levels makes of them."""

from ddpmbench.errors import InputError
from ddpmbench.inputs.images import ImageSet
from ddpmbench.process.data_range import UNIT_RANGE, DataRange

_PORTION = 1024  # images looked at together


def refuse_reduced(images: ImageSet, data_range: DataRange) -> None:
    """Refuse images whose pixels are levels already, which would be reduced once more.

    Args:
        images: 8-bit pixels on 0..255.
        data_range: of the model.

    Raises:
        InputError: it has no more than half as many levels as pixels have, and no pixel is above
            its highest; more levels leave a dark set in doubt, which is then taken as it is.
    """
    levels = data_range.levels
    if levels > UNIT_RANGE.levels // 2:
        return
    for start in range(0, len(images), _PORTION):
        if max(image.max() for image in images.part(start, start + _PORTION)) >= levels:
            return
    raise InputError(
        f"--data {images.source}: no pixel is above {levels - 1}, so its images look reduced to "
        f"{levels} levels already, but --levels {levels} takes pixels on 0..255 and reduces them "
        f"itself; save level k as the pixel 256 k / {levels}, rounded up (of a set that is so "
        "dark take more images)"
    )
