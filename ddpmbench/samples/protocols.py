"""Named conventions of published scores; scores of different ones are not comparable."""

import dataclasses

from ddpmbench.diffusion.data_range import EightBit
from ddpmbench.errors import InputError, one_of

PUBLISHED_AT = 50_000
"""Number of samples of published scores."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A convention of resizing, rounding and splits.

    Attributes:
        id: its name.
        resize: to the input size of the feature network: "clean" is PIL's bicubic with
            antialiasing, in float; "legacy_tensorflow" is bilinear without.
        eight_bit: conversion of samples to 8-bit pixels.
        inception_splits: number of splits of the Inception score; 0 for no such score.
        inception_order: "file" or "shuffled".
        chunk: size of a split instead of their number; the last one may be smaller.
    """

    id: str
    resize: str
    eight_bit: EightBit
    inception_splits: int
    inception_order: str
    chunk: int | None = None

    def splits_of(self, num_images: int) -> list[int]:
        """The S + 1 edges of the splits of the Inception score; empty if there is no such score.

        The sizes of `inception_splits` splits differ by at most 1.
        """
        if self.chunk is not None:
            return [*range(0, num_images, self.chunk), num_images]
        splits = min(self.inception_splits, num_images)
        return [i * num_images // splits for i in range(splits + 1)] if splits else []


PROTOCOLS = {
    protocol.id: protocol
    for protocol in (
        # Ho et al. 2020: the TensorFlow graph of 2015, one split. Their code does not round.
        Protocol("ddpm", "legacy_tensorflow", EightBit.ROUND, 1, "file"),
        # Parmar et al. 2022.
        Protocol("clean", "clean", EightBit.ROUND, 10, "shuffled"),
        # Dhariwal & Nichol 2021.
        Protocol("adm", "legacy_tensorflow", EightBit.TRUNCATE, 1, "file", chunk=5000),
        # Karras et al. 2022.
        Protocol("edm", "legacy_tensorflow", EightBit.ROUND, 0, "file"),
    )
}
"""The protocols by name."""


def protocol_named(name: str | None, *, resizes_inside: bool) -> Protocol:
    """The protocol of this name.

    Args:
        name: None for `ddpm`, or for `clean` if the network cannot follow that.
        resizes_inside: whether the feature network can resize as TensorFlow did.

    Raises:
        InputError: an unknown name, or the feature network cannot follow it.
    """
    if name is None:
        return PROTOCOLS["ddpm" if resizes_inside else "clean"]
    one_of("protocol", name, PROTOCOLS)
    protocol = PROTOCOLS[name]
    if protocol.resize != "clean" and not resizes_inside:
        raise InputError(
            f"`protocol={name}`: resizes as TensorFlow does, which this feature network does not; "
            "choose clean"
        )
    return protocol
