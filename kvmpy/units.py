"""Sizes and addresses: constants, rounding, and how people write them."""

from __future__ import annotations

from kvmpy.errors import ConfigError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}


def align_down(value: int, alignment: int) -> int:
    """The largest multiple of `alignment` (a power of two) that is not above `value`."""
    return value & -alignment


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` (a power of two) that is not below `value`."""
    return (value + alignment - 1) & -alignment


def parse_size(text: str, *, path: str = "size", default_unit: int = MIB) -> int:
    """Bytes in a size as people write it: `512M`, `1.5G`, `64KiB`, `0x1000`, or a bare number of `default_unit`.

    A hexadecimal number counts bytes.  `path` names the option in the `ConfigError` that anything else raises.
    """
    word = text.strip()
    try:
        if word[:2].lower() == "0x":
            return int(word, 16)
        number = word.rstrip("BbIiKkMmGgTt")
        suffix = word[len(number) :].upper().removesuffix("B").removesuffix("I")
        unit = _SUFFIXES[suffix] if word != number else default_unit
        if not number.isascii() or len(number) > 20:
            raise ValueError
        size = float(number) * unit
        if not (size >= 0 and size == int(size)):
            raise ValueError
        return int(number) * unit if number.isdigit() else int(size)
    except (ValueError, KeyError, OverflowError):
        raise ConfigError(path, f"{text!r} is not a size; write it as 256M, 1.5G or 0x10000000") from None


def format_size(size: int) -> str:
    """`size` bytes as the shortest exact text that `parse_size` reads back: `256M`, `4K`, `123B`."""
    for suffix, unit in (("T", TIB), ("G", GIB), ("M", MIB), ("K", KIB)):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return f"{size}B"
