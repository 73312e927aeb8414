"""Resource descriptors (ACPI 6.5, 6.4): what a device says in `_CRS` that it uses, named as in ASL."""

from __future__ import annotations

import struct

from kvmpy.x86.acpi.aml import Buffer

_END_TAG = b"\x79\x00"  # a checksum of zero: not checked

_DECODE_16 = 1
_READ_WRITE = 1

# Interrupt vector flags (table 6.51).
CONSUMER = 0x01
EDGE = 0x02
ACTIVE_LOW = 0x04
SHARED = 0x08

# Resource types and flags of an address space descriptor (table 6.43 and on).
_MEMORY, _IO, _BUS_NUMBER = range(3)
_FIXED = 0x0C  # both ends of the range stay where they are
_IO_ENTIRE_RANGE = 0x03
_CACHEABLE = 0x02

_WIDTHS = {2: (0x88, "HHHHH"), 4: (0x87, "IIIII"), 8: (0x8A, "QQQQQ")}


def ResourceTemplate(*descriptors: bytes) -> bytes:
    """A buffer of descriptors and their end tag: the value of `_CRS`."""
    return Buffer(b"".join(descriptors) + _END_TAG)


def IRQNoFlags(*irqs: int) -> bytes:
    """ISA interrupts: edge-triggered, active high, not shared (6.4.2.1)."""
    mask = 0
    for irq in irqs:
        mask |= 1 << irq
    return struct.pack("<BH", 0x22, mask)


def IO(first: int, length: int, alignment: int = 1) -> bytes:
    """`length` ports (up to 255) from `first` on (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, _DECODE_16, first, first, alignment, length)


def Memory32Fixed(base: int, length: int) -> bytes:
    """`length` bytes of registers at `base`, below 4 GiB (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, _READ_WRITE, base, length)


def Interrupt(*gsis: int, flags: int = CONSUMER | EDGE) -> bytes:
    """Global system interrupts (6.4.3.6); the default is edge-triggered, active high and not shared."""
    return struct.pack(f"<BHBB{len(gsis)}I", 0x89, 2 + 4 * len(gsis), flags, len(gsis), *gsis)


def WordBusNumber(first: int, last: int) -> bytes:
    """The PCI buses behind a bridge."""
    return _address_space(2, _BUS_NUMBER, 0, first, last)


def WordIO(first: int, last: int) -> bytes:
    """A window of ports that a bridge passes on."""
    return _address_space(2, _IO, _IO_ENTIRE_RANGE, first, last)


def DWordMemory(first: int, last: int, *, cacheable: bool = False) -> bytes:
    """A window of memory below 4 GiB that a bridge passes on."""
    return _address_space(4, _MEMORY, _READ_WRITE | (_CACHEABLE if cacheable else 0), first, last)


def QWordMemory(first: int, last: int, *, cacheable: bool = False, consumer: bool = False) -> bytes:
    """A window of memory anywhere, which a bridge passes on or, for `consumer`, a device uses itself."""
    return _address_space(8, _MEMORY, _READ_WRITE | (_CACHEABLE if cacheable else 0), first, last, int(consumer))


def _address_space(width: int, kind: int, type_flags: int, first: int, last: int, general_flags: int = 0) -> bytes:
    """An address space descriptor of `width` bytes an address (6.4.3.5), for `first` to `last` inclusive."""
    tag, numbers = _WIDTHS[width]
    return struct.pack(
        f"<BHBBB{numbers}",
        tag, 3 + 5 * width, kind, general_flags | _FIXED, type_flags, 0, first, last, 0, last - first + 1,
    )  # fmt: skip
