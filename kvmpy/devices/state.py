"""Saved state of a device: named numbers that JSON can hold, checked when they come back.

A snapshot's file is as untrusted as the guest, so `State.from_dict` checks each field before a device sees it.
"""

from __future__ import annotations

from kvmpy.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ClassVar, Self, TypeAlias

    Fields: TypeAlias = Mapping[str, Callable[[object], bool]]


def integer(low: int, high: int) -> Callable[[object], bool]:
    """A check that a value is a whole number from `low` to `high`."""
    return lambda value: type(value) is int and low <= value <= high


def integers(least: int, most: int, high: int) -> Callable[[object], bool]:
    """A check that a value is a list of `least` to `most` whole numbers, each from 0 to `high`."""
    return lambda value: (
        isinstance(value, list)
        and least <= len(value) <= most
        and all(type(item) is int and 0 <= item <= high for item in value)
    )


def hexadecimal(value: object) -> bool:
    """A check that a value is bytes as `bytes.hex` writes them."""
    return isinstance(value, str) and len(value) % 2 == 0 and all(digit in "0123456789abcdef" for digit in value)


BYTE = integer(0, 0xFF)
FLAG = integer(0, 1)


class State:
    """Base of the `*State` classes.

    A subclass names its fields in `__slots__`, gives each a check in `FIELDS`, and takes each by name in
    `__init__`, with the power-on value as its default.
    """

    __slots__ = ()

    FIELDS: ClassVar[Fields] = {}

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {name: getattr(self, name) for name in self.FIELDS}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The state that `to_dict` gave; a field missing, unknown or out of its bounds is an `ImageError`."""
        if not hasattr(fields, "keys") or set(fields) != set(cls.FIELDS):
            raise ImageError(f"the saved {cls.__name__} has not the fields {', '.join(cls.FIELDS)}")
        for name, valid in cls.FIELDS.items():
            if not valid(fields[name]):
                raise ImageError(f"the saved {cls.__name__} has an impossible {name}")
        return cls(**fields)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.to_dict() == self.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"
