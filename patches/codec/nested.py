"""Structures of tuples, lists and dicts, and their leaves in one list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def nested_flatten(structure: Any) -> Iterator[Any]:
    """The leaves, from left to right; of a dict in the order of its sorted keys."""
    if isinstance(structure, (list, tuple)):
        for item in structure:
            yield from nested_flatten(item)
    elif isinstance(structure, dict):
        for key in sorted(structure):
            yield from nested_flatten(structure[key])
    else:
        yield structure


def nested_pack(flat: Iterable[Any], structure: Any) -> Any:
    """The structure with other leaves, taken in the order of `nested_flatten`.

    Raises:
        ValueError: there are fewer leaves than places.
    """
    leaves = iter(flat)

    def packed(part: Any) -> Any:
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*map(packed, part))
        if isinstance(part, (list, tuple)):
            return (list if isinstance(part, list) else tuple)(map(packed, part))
        if isinstance(part, dict):
            filled = {key: packed(part[key]) for key in sorted(part)}
            return {key: filled[key] for key in part}
        try:
            return next(leaves)
        except StopIteration:
            raise ValueError("there are fewer leaves than the structure has places") from None

    return packed(structure)


def nested_compare(one: Any, other: Any) -> bool:
    """Whether two structures have the same shape, whatever their leaves."""
    if isinstance(one, dict) or isinstance(other, dict):
        if not (isinstance(one, dict) and isinstance(other, dict)):
            return False
        return one.keys() == other.keys() and all(nested_compare(one[key], other[key]) for key in one)
    for kind in (list, tuple):
        if isinstance(one, kind) or isinstance(other, kind):
            same = isinstance(one, kind) and isinstance(other, kind) and len(one) == len(other)
            return same and all(map(nested_compare, one, other))
    return True
