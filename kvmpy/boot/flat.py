"""Flat binaries: the bytes of a file put at an address and entered there, in a mode of one's choice."""

from __future__ import annotations

from kvmpy.boot.entry import LONG, PROTECTED, REAL, Entry
from kvmpy.errors import ConfigError, GuestMemoryError
from kvmpy.units import MIB
from kvmpy.x86.gdt import write_gdt
from kvmpy.x86.layout import BOOT_STACK, BOOT_STACK_TOP, GDT, PAGE_TABLES, PAGE_TABLES_SIZE
from kvmpy.x86.paging import build_identity_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.memory import GuestMemory

# Where a PC's firmware puts a boot sector; and where nothing of ours lies.
DEFAULT_ADDRESS = {"flat16": 0x7C00, "flat32": MIB, "flat64": MIB}
MODE = {"flat16": REAL, "flat32": PROTECTED, "flat64": LONG}

# What is written for the guest besides its image; in real mode it gets only a stack, below itself.
_GDT = (GDT, BOOT_STACK, "the GDT")
_TABLES = (PAGE_TABLES, PAGE_TABLES + PAGE_TABLES_SIZE, "the page tables")
_OURS = {REAL: (), PROTECTED: (_GDT,), LONG: (_GDT, _TABLES)}


def parse_protocol(text: str) -> tuple[str, int]:
    """The mode's name and the address in `flat16`, `flat32` or `flat64`, each with `@ADDRESS` after it or without."""
    name, at, address = text.partition("@")
    try:
        where = int(address, 0) if at else DEFAULT_ADDRESS[name]
        if name not in MODE or where < 0 or len(address) > 20:
            raise ValueError
    except (ValueError, KeyError):
        names = ", ".join(MODE)
        raise ConfigError("protocol", f"{text!r:.100} is not one of {names}, alone or as in flat32@0x200000") from None
    if name == "flat16" and where >= MIB:
        raise ConfigError("protocol", f"real mode reaches only what lies below {MIB:#x}, not {where:#x}")
    return name, where


def load_flat(memory: GuestMemory, image: memoryview, protocol: str) -> Entry:
    """Loads `image` as `protocol` (see `parse_protocol`) says; `ConfigError` where there is no room for it."""
    name, address = parse_protocol(protocol)
    mode = MODE[name]
    end = address + len(image)
    for low, high, what in _OURS[mode]:
        if address < high and low < end:
            raise ConfigError("protocol", f"{address:#x} to {end:#x} overlaps {what} at {low:#x} to {high:#x}")
    try:
        memory.write(address, image)
    except GuestMemoryError:
        raise ConfigError("protocol", f"{len(image)} bytes at {address:#x} are outside of the machine's RAM") from None
    description = f"flat binary, {name[4:]}-bit, at {address:#x}"
    if mode == REAL:
        return Entry(mode, address, rsp=min(address, BOOT_STACK_TOP), description=description)
    base, limit = write_gdt(memory, 64 if mode == LONG else 32)
    cr3 = build_identity_map(memory, PAGE_TABLES) if mode == LONG else 0
    return Entry(mode, address, rsp=BOOT_STACK_TOP, cr3=cr3, gdt_base=base, gdt_limit=limit, description=description)
