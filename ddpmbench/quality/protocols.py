"""The named ways in which published scores were made; none compares with another."""

import dataclasses

from ddpmbench.errors import InputError
from ddpmbench.process.units import EightBit

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
        inception_splits: of the Inception score; None where the protocol has no such score, 0
            where a split is `chunk` images.
        inception_order: "file" or "shuffled".
        chunk: images in a split where their number follows from it.
    """

    id: str
    resize: str
    eight_bit: EightBit
    inception_splits: int | None
    inception_order: str
    chunk: int = 5000

    def splits_of(self, num_images: int) -> int | None:
        """Splits of the Inception score of so many images; None where it has none."""
        if self.inception_splits == 0:
            return max(1, num_images // self.chunk)
        return self.inception_splits


PROTOCOLS = {
    protocol.id: protocol
    for protocol in (
        # Ho et al. 2020: the TensorFlow graph of 2015, one split.
        Protocol("ddpm", "legacy_tensorflow", EightBit.ROUND, 1, "file"),
        # Parmar et al. 2022.
        Protocol("clean", "clean", EightBit.ROUND, 10, "shuffled"),
        # Dhariwal & Nichol 2021.
        Protocol("adm", "legacy_tensorflow", EightBit.TRUNCATE, 0, "file"),
        # Karras et al. 2022.
        Protocol("edm", "legacy_tensorflow", EightBit.ROUND, None, "file"),
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
    if name not in PROTOCOLS:
        raise InputError(f"--protocol {name}: choose one of {', '.join(PROTOCOLS)}")
    found = PROTOCOLS[name]
    if found.resize != "clean" and not resizes_inside:
        raise InputError(
            f"--protocol {name}: resizes as TensorFlow did, which this feature network does not; "
            "choose clean"
        )
    return found
