"""CPUID leaves as KVM passes them (api.rst 4.46): plain objects, to and from `struct kvm_cpuid2`."""

from __future__ import annotations

from kvmpy.kvm._ffi import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# More leaves than any CPU has today; KVM says E2BIG when it is too few.
MAX_ENTRIES = 256

KVM_CPUID_FLAG_SIGNIFICANT_INDEX: int = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX


class CpuidEntry:
    """What `cpuid` answers for one leaf (`function`) and sub-leaf (`index`): four 32-bit registers."""

    __slots__ = ("eax", "ebx", "ecx", "edx", "flags", "function", "index")

    def __init__(
        self, function: int, index: int = 0, flags: int = 0, eax: int = 0, ebx: int = 0, ecx: int = 0, edx: int = 0
    ) -> None:
        self.function = function
        self.index = index
        self.flags = flags
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx

    def _key(self) -> tuple[int, ...]:
        return (self.function, self.index, self.flags, self.eax, self.ebx, self.ecx, self.edx)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuidEntry) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        registers = f"eax={self.eax:#x}, ebx={self.ebx:#x}, ecx={self.ecx:#x}, edx={self.edx:#x}"
        return f"CpuidEntry({self.function:#x}, {self.index}, flags={self.flags}, {registers})"


def empty_table() -> Any:
    """A `struct kvm_cpuid2` with room for KVM to fill."""
    table = ffi.new("struct kvm_cpuid2 *", {"entries": MAX_ENTRIES})
    table.nent = MAX_ENTRIES
    return table


def table_of(entries: Iterable[CpuidEntry]) -> Any:
    """`entries` as a `struct kvm_cpuid2`."""
    rows = list(entries)
    table = ffi.new("struct kvm_cpuid2 *", {"entries": len(rows)})
    table.nent = len(rows)
    for row, entry in zip(table.entries, rows, strict=False):
        row.function, row.index, row.flags = entry.function, entry.index, entry.flags
        row.eax, row.ebx, row.ecx, row.edx = entry.eax, entry.ebx, entry.ecx, entry.edx
    return table


def entries_of(table: Any) -> list[CpuidEntry]:
    """The entries of a `struct kvm_cpuid2`."""
    rows = (table.entries[i] for i in range(table.nent))
    return [CpuidEntry(r.function, r.index, r.flags, r.eax, r.ebx, r.ecx, r.edx) for r in rows]
