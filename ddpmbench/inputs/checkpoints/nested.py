"""The tensors of what training code saves, however deep they lie in it."""

from collections.abc import Iterator, Mapping

from torch import Tensor


def tensors_in(content: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested dicts and lists, under its path, its parts joined with dots.

    A dict or list that is there twice is gone through where it is first.

    Args:
        content: what `read_state` gave, or a part of it.
    """
    yield from _below(content, "", set())


def _below(content: object, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, Mapping | list | tuple) and id(content) not in seen:
        seen.add(id(content))  # a pickle may hold a dict that holds itself
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for name, value in items:
            yield from _below(value, f"{path}.{name}" if path else str(name), seen)
