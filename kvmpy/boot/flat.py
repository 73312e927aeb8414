"""Flat binaries: the bytes of a file put at an address and entered there, in a mode of one's choice."""

from __future__ import annotations

from kvmpy.boot.entry import LONG, PROTECTED, REAL, Entry
from kvmpy.boot.source import open_image
from kvmpy.errors import ConfigError, GuestMemoryError
from kvmpy.units import MIB
from kvmpy.x86.gdt import write_gdt
from kvmpy.x86.layout import BOOT_STACK_TOP, PAGE_TABLES
from kvmpy.x86.paging import build_identity_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.boot.source import Source
    from kvmpy.memory import GuestMemory

# Where a PC's firmware puts a boot sector; and where nothing of ours lies.
DEFAULT_ADDRESS = {"flat16": 0x7C00, "flat32": MIB, "flat64": MIB}
MODE = {"flat16": REAL, "flat32": PROTECTED, "flat64": LONG}


def parse_protocol(text: str) -> tuple[str, int]:
    """The mode's name and the address in `flat16`, `flat32` or `flat64`, each with `@ADDRESS` after it or without."""
    name, _, address = text.partition("@")
    try:
        where = int(address, 0) if address else DEFAULT_ADDRESS[name]
        if name not in MODE or where < 0 or len(address) > 20:
            raise ValueError
    except (ValueError, KeyError):
        raise ConfigError("protocol", f"{text!r} is none of {', '.join(MODE)}, as in flat32@0x200000") from None
    if name == "flat16" and where >= MIB:
        raise ConfigError("protocol", f"real mode reaches up to {MIB:#x}, and not {where:#x}")
    return name, where


def load_flat(memory: GuestMemory, kernel: Source, protocol: str) -> Entry:
    """Loads the file as `protocol` (see `parse_protocol`) says; `ConfigError` where there is no RAM for it."""
    name, address = parse_protocol(protocol)
    image = open_image(kernel, "kernel")
    try:
        memory.write(address, image)
    except GuestMemoryError:
        raise ConfigError("protocol", f"{len(image)} bytes at {address:#x} are outside of the machine's RAM") from None
    mode = MODE[name]
    description = f"flat binary, {name[4:]}-bit, at {address:#x}"
    if mode == REAL:
        return Entry(mode, address, rsp=min(address, BOOT_STACK_TOP), description=description, bare=True)
    base, limit = write_gdt(memory, 64 if mode == LONG else 32)
    cr3 = build_identity_map(memory, PAGE_TABLES) if mode == LONG else 0
    return Entry(
        mode, address, rsp=BOOT_STACK_TOP, cr3=cr3, gdt_base=base, gdt_limit=limit, description=description, bare=True
    )
