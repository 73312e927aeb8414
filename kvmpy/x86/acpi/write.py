"""All tables of a machine, put where a guest finds them: in the BIOS area below 1 MiB."""

from __future__ import annotations

from kvmpy.errors import ConfigError
from kvmpy.units import align_up
from kvmpy.x86 import layout
from kvmpy.x86.acpi import tables
from kvmpy.x86.acpi.dsdt import definition
from kvmpy.x86.acpi.fadt import fadt
from kvmpy.x86.acpi.hardware import TABLES, TABLES_END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.memory import GuestMemory
    from kvmpy.x86.acpi.platform import AcpiPlatform

DSDT_REVISION = 2  # integers have 64 bits
_FACS_ALIGNMENT = 64
_ALIGNMENT = 16


class _Placer:
    """Puts one table behind the other."""

    __slots__ = ("_memory", "_next")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._next = TABLES

    def put(self, data: bytes, alignment: int = _ALIGNMENT) -> int:
        """Writes `data`; its address."""
        address = align_up(self._next, alignment)
        self._next = address + len(data)
        if self._next > TABLES_END:
            size = TABLES_END - TABLES
            raise ConfigError("acpi", f"the tables need more than their {size} bytes; give fewer CPUs or devices")
        self._memory.write(address, data)
        return address


def write_acpi(memory: GuestMemory, platform: AcpiPlatform) -> int:
    """Writes the tables of `platform`; the RSDP's address.  What does not fit its place is a `ConfigError`."""
    placer = _Placer(memory)
    facs_address = 0 if platform.hardware_reduced else placer.put(tables.facs(), _FACS_ALIGNMENT)
    dsdt_address = placer.put(tables.table(b"DSDT", DSDT_REVISION, definition(platform)))
    found = [
        placer.put(fadt(platform, facs_address=facs_address, dsdt_address=dsdt_address)),
        placer.put(tables.madt(platform)),
    ]
    if platform.pci is not None and platform.pci.ecam is not None:
        found.append(placer.put(tables.mcfg(platform.pci)))
    if platform.nodes:
        found.append(placer.put(tables.srat(platform.nodes)))
    root = tables.rsdp(placer.put(tables.rsdt(found)), placer.put(tables.xsdt(found)))
    memory.write(layout.RSDP, root)
    return layout.RSDP
