"""Configuration space of a PCI function with a type 0 header (PCI Local Bus 3.0, chapter 6): registers and who may
write them.

Registers are bytes with three properties, a bit each: its value, whether the guest's write sets it, and whether the
guest's write of 1 clears it.  All else is read-only.
"""

from __future__ import annotations

VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION_ID = 0x08
CLASS_CODE = 0x09
CACHE_LINE_SIZE = 0x0C
HEADER_TYPE = 0x0E
BAR0 = 0x10
SUBSYSTEM_VENDOR_ID = 0x2C
SUBSYSTEM_ID = 0x2E
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
HEADER_SIZE = 0x40

COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_MASTER = 1 << 2
COMMAND_PARITY = 1 << 6
COMMAND_SERR = 1 << 8
COMMAND_INTX_DISABLE = 1 << 10

STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
STATUS_ERRORS = 0xF900  # parity and SERR#, aborts: a write of 1 clears them

HEADER_MULTIFUNCTION = 0x80

CONVENTIONAL_SIZE = 0x100
EXTENDED_SIZE = 0x1000  # PCI Express

_COMMAND_WRITABLE = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE


class ConfigSpace:
    """`size` bytes of registers with the header's own set up; offsets and sizes in bytes.

    `class_code` is base class, subclass and programming interface as one number of 24 bits.
    """

    __slots__ = ("_cleared", "_free", "_last_capability", "_writable", "bytes", "size")

    def __init__(
        self,
        vendor_id: int,
        device_id: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem_vendor_id: int = 0,
        subsystem_id: int = 0,
        size: int = CONVENTIONAL_SIZE,
    ) -> None:
        self.size = size
        self.bytes = bytearray(size)
        self._writable = bytearray(size)
        self._cleared = bytearray(size)
        self._last_capability = CAPABILITIES
        self._free = HEADER_SIZE
        self.define(VENDOR_ID, 2, vendor_id)
        self.define(DEVICE_ID, 2, device_id)
        self.define(COMMAND, 2, writable=_COMMAND_WRITABLE)
        self.define(STATUS, 2, cleared=STATUS_ERRORS)
        self.define(REVISION_ID, 1, revision)
        self.define(CLASS_CODE, 3, class_code)
        self.define(CACHE_LINE_SIZE, 1, writable=0xFF)
        self.define(SUBSYSTEM_VENDOR_ID, 2, subsystem_vendor_id)
        self.define(SUBSYSTEM_ID, 2, subsystem_id)
        self.define(INTERRUPT_LINE, 1, writable=0xFF)

    def define(self, offset: int, size: int, value: int = 0, *, writable: int = 0, cleared: int = 0) -> None:
        """Makes a register: its value, the bits that a write sets, and the bits that a write of 1 clears."""
        for table, number in ((self.bytes, value), (self._writable, writable), (self._cleared, cleared)):
            table[offset : offset + size] = number.to_bytes(size, "little")

    def add_capability(self, capability: int, body: bytes, *, writable: bytes = b"") -> int:
        """Appends a capability to the list; where it is.

        `body` is what follows its two bytes of id and link; `writable` has the bits of it that the guest sets.
        `ValueError` when it does not fit: capabilities lie in the first 256 bytes.
        """
        offset, size = self._free, 2 + len(body)
        if offset + size > CONVENTIONAL_SIZE:
            raise ValueError(f"capability {capability:#x} of {size} bytes does not fit at {offset:#x}")
        self.define(offset, 1, capability)
        self.bytes[offset + 2 : offset + size] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        link = self._last_capability if self._last_capability == CAPABILITIES else self._last_capability + 1
        self.bytes[link] = offset
        self._last_capability = offset
        self._free = offset + size + 3 & ~3
        self.set_bits(STATUS, STATUS_CAPABILITIES, True)
        return offset

    def get(self, offset: int, size: int) -> int:
        """A register's value."""
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Sets a register as the device does, whoever else may write it."""
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")

    def set_bits(self, offset: int, bits: int, on: bool) -> None:
        """Sets or clears `bits` of the 16-bit register at `offset`, as the device does."""
        value = self.get(offset, 2)
        self.set(offset, 2, value | bits if on else value & ~bits)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """What the guest's write does, inside the space; bytes that it does not touch stay."""
        registers, writable, cleared = self.bytes, self._writable, self._cleared
        for at, value in enumerate(data, offset):
            kept = registers[at] & ~writable[at] | value & writable[at]
            registers[at] = kept & ~(value & cleared[at])

    def volatile(self) -> bytes:
        """The bytes with all bits that the guest can change, the others 0: what is worth saving."""
        return bytes(
            value & (writable | cleared)
            for value, writable, cleared in zip(self.bytes, self._writable, self._cleared, strict=True)
        )

    def set_volatile(self, saved: bytes) -> None:
        """Puts back what `volatile` gave; the bits that the guest cannot change stay."""
        for at, value in enumerate(saved):
            mask = self._writable[at] | self._cleared[at]
            self.bytes[at] = self.bytes[at] & ~mask | value & mask
