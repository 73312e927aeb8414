"""Firmware: where a PC's ROM lies, and the tables that it reads from fw_cfg.

The processor starts at its reset vector, 16 bytes below 4 GiB, so the image ends at 4 GiB.  Its end also shows below
1 MiB, where real-mode code can reach it.  A PC's firmware makes its chipset put RAM there (PAM registers) and copies
itself; here RAM with the copy is there from the start, for as much as a chipset could shadow.
"""

from __future__ import annotations

import mmap

from kvmpy.errors import ConfigError
from kvmpy.kvm.capabilities import KVM_CAP_READONLY_MEM
from kvmpy.kvm.vm import KVM_MEM_READONLY
from kvmpy.units import GIB, KIB, MIB, format_size
from kvmpy.x86.bootparams import E820_ENTRY, E820_RAM, E820_RESERVED
from kvmpy.x86.layout import IDENTITY_MAP, TSS_END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy.kvm import Vm
    from kvmpy.memory import GuestMemory, MemoryRegion

FIRMWARE_END = 4 * GIB
FIRMWARE_MAX = FIRMWARE_END - TSS_END
FIRMWARE_UNIT = 64 * KIB

# What shows below 1 MiB: an image that fits between video memory and 1 MiB as a whole, the end of a larger one.
SHADOW_MAX = 256 * KIB
ISA_BIOS_SIZE = 128 * KIB
ISA_BIOS_END = MIB


def load_firmware(vm: Vm, memory: GuestMemory, image: bytes | memoryview, slot: int) -> int:
    """Maps `image` below 4 GiB in KVM's memory `slot`, copies its end below 1 MiB; the address of its first byte.

    It is read-only where KVM can do that: the guest's writes then come out as memory-mapped I/O.  `ConfigError`
    for a size that no ROM has, and for a machine of less than 1 MiB.
    """
    size = len(image)
    if not 0 < size <= FIRMWARE_MAX or size % FIRMWARE_UNIT:
        most, unit = format_size(FIRMWARE_MAX), format_size(FIRMWARE_UNIT)
        raise ConfigError(
            "firmware", f"{size} bytes is not a size of firmware; it has up to {most}, in steps of {unit}"
        )
    if memory.regions[0].end < ISA_BIOS_END:
        raise ConfigError("memory", f"firmware needs at least {format_size(ISA_BIOS_END)}")
    rom = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    rom[:] = image
    flags = KVM_MEM_READONLY if vm.check_extension(KVM_CAP_READONLY_MEM) else 0
    vm.set_memory_region(slot, FIRMWARE_END - size, rom, flags)
    shown = size if size <= SHADOW_MAX else ISA_BIOS_SIZE
    memory.write(ISA_BIOS_END - shown, image[size - shown :])
    return FIRMWARE_END - size


def e820_file(regions: Iterable[MemoryRegion]) -> bytes:
    """The fw_cfg file `etc/e820`: all RAM, and what the firmware must leave alone.

    Other than `bootparams.e820` it does not leave out what lies below 1 MiB: sharing that out is the firmware's.
    """
    table = [(region.start, region.size, E820_RAM) for region in regions]
    table.append((IDENTITY_MAP, TSS_END - IDENTITY_MAP, E820_RESERVED))
    return b"".join(E820_ENTRY.pack(*entry) for entry in table)
