"""The named ways in which published scores were made; none compares with another."""

import dataclasses

from ddpmbench.diffusion.data_range import EightBit
from ddpmbench.errors import InputError, one_of

PUBLISHED_AT = 50_000
"""Samples that published scores were made from."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How images become scores.

    Attributes:
        id: its name.
        resize: how images become as large as the feature network wants them: "clean" is PIL's
            bicubic with antialiasing, in float; "legacy_tensorflow" bilinear without.
        eight_bit: how samples become 8-bit pixels.
        inception_splits: of the Inception score; 0 where the protocol has no such score.
        inception_order: "file" or "shuffled".
        chunk: images in a split, the last of which may have fewer, in place of their number.
    """

    id: str
    resize: str
    eight_bit: EightBit
    inception_splits: int
    inception_order: str
    chunk: int | None = None

    def splits_of(self, num_images: int) -> list[int]:
        """Where the splits of the Inception score of so many images begin and end; empty if none.

        Splits of a given number differ in size by at most 1.
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
"""By their names."""


def protocol_named(name: str | None, *, resizes_inside: bool) -> Protocol:
    """The protocol of this name.

    Args:
        name: None for `ddpm`, or `clean` where that cannot be.
        resizes_inside: whether the feature network can resize as TensorFlow did.

    Raises:
        InputError: there is none, or the feature network cannot follow it.
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
