"""What a reader raises, and how its line lists names."""

from collections.abc import Sequence

from ddpmbench.errors import InputError

_MOST_LISTED = 3


def refusal(subject: object, reason: str) -> InputError:
    """The error to raise: one line, whatever a path or another library's message holds."""
    return InputError(f"{subject}: {reason}")


def listed(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - _MOST_LISTED:,} more" if len(names) > _MOST_LISTED else ""
    return f"{', '.join(names[:_MOST_LISTED])}{more}"


def count_to_read(num_images: int | None, total: int, source: object) -> int:
    """How many images to take of those there are.

    Raises:
        InputError: if `num_images` lies outside 1..total.
    """
    if num_images is None:
        return total
    if not 1 <= num_images <= total:
        raise refusal(
            f"--num-images {num_images}",
            f"{source} holds {total} images; give a number from 1 to {total}",
        )
    return num_images
