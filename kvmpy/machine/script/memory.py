"""Guest memory as a vCPU sees it: by linear ("virtual") address, through its page tables."""

from __future__ import annotations

from kvmpy.errors import GuestMemoryError, KvmpyError
from kvmpy.units import PAGE_SIZE
from kvmpy.x86.paging import walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.machine.script.registers import Registers
    from kvmpy.memory import GuestMemory

_LINEAR_END = 1 << 64
_STRING_LIMIT = 64 << 10


class NotMappedError(KvmpyError):
    """A linear address that the guest's page tables do not map, or that leads to no RAM; `address` is the first."""

    def __init__(self, address: int) -> None:
        super().__init__(f"address {address:#x} is not mapped to RAM in the guest's page tables")
        self.address = address


class VirtualMemory:
    """Memory by linear address, by the page tables that `registers` name at the time of each access.

    Without paging a linear address is a physical one; segment bases are the caller's to add.  Rights are not looked at:
    what is mapped can be read and written.  All methods raise `NotMappedError`, before anything is written.
    """

    __slots__ = ("_memory", "_registers")

    def __init__(self, memory: GuestMemory, registers: Registers) -> None:
        self._memory = memory
        self._registers = registers

    def physical(self, address: int) -> int:
        """The guest-physical address behind a linear one."""
        registers = self._registers
        found = walk(self._memory, registers.cr0, registers.cr3, registers.cr4, registers.efer, address)
        if found is None:
            raise NotMappedError(address)
        return found.physical

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes."""
        return b"".join(self._memory.read(*piece) for piece in self._pieces(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Stores `data`."""
        start = 0
        for physical, length in list(self._pieces(address, len(data))):
            self._memory.write(physical, data[start : start + length])
            start += length

    def read_int(self, address: int, size: int = 8) -> int:
        """The little-endian number of `size` bytes."""
        return int.from_bytes(self.read(address, size), "little")

    def write_int(self, address: int, value: int, size: int = 8) -> None:
        """Stores the low `size` bytes of a number, little-endian."""
        self.write(address, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def read_string(self, address: int, limit: int = 4096) -> bytes:
        """The bytes up to a NUL, which is left out, and at most `limit`."""
        text = b""
        limit = min(limit, _STRING_LIMIT)
        while len(text) < limit:
            piece = self.read(address, min(limit - len(text), PAGE_SIZE - address % PAGE_SIZE))
            text += piece
            if 0 in piece:
                break
            address += len(piece)
        return text.partition(b"\0")[0]

    def _pieces(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """The physical (address, length) of a range, page by page."""
        if length < 0 or not 0 <= address < _LINEAR_END:
            raise NotMappedError(address)
        while length:
            here = min(length, PAGE_SIZE - address % PAGE_SIZE)
            physical = self.physical(address)
            try:
                self._memory.region_of(physical, here)
            except GuestMemoryError:
                raise NotMappedError(address) from None
            yield physical, here
            address = (address + here) % _LINEAR_END
            length -= here
