"""Linux, from a bzImage or an ELF vmlinux to the first instruction, by the kernel's boot protocol.

A bzImage is unpacked here and its kernel entered directly, where it was linked to run (so without KASLR, which is
its decompressor's work).  When it cannot be unpacked here its own decompressor is entered instead.
"""

from __future__ import annotations

import os

from kvmpy.boot import elf, unpack
from kvmpy.boot.bzimage import ENTRY_64, BzImage
from kvmpy.boot.elf import Elf
from kvmpy.boot.entry import LONG, PROTECTED, Entry
from kvmpy.boot.place import check_fits, encode_cmdline, load_segments, low_ram_end, place_high
from kvmpy.errors import ImageError
from kvmpy.units import MIB
from kvmpy.x86 import bootparams, layout
from kvmpy.x86.gdt import write_gdt
from kvmpy.x86.mptable import write_mp_tables
from kvmpy.x86.paging import build_identity_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.memory import GuestMemory

# What an x86 kernel is built with: COMMAND_LINE_SIZE less its NUL, and a 2 GiB ceiling for the initrd.
_VMLINUX_CMDLINE_SIZE = 2047
_VMLINUX_INITRD_ADDR_MAX = 0x7FFFFFFF

# A kernel unpacked is 10 to 100 MiB; a machine's RAM is the other bound.
UNPACKED_MAX = 512 * MIB

# Before protocol 2.10 a bzImage does not say how much memory it unpacks into: this many times its own size.
_UNKNOWN_INIT_SIZE = 5


class _Kernel:
    """A kernel in guest RAM: where it is entered, and the first address behind what it needs."""

    __slots__ = ("description", "end", "mode", "notes", "rip")

    def __init__(self, mode: str, rip: int, end: int, description: str, notes: tuple[str, ...] = ()) -> None:
        self.mode = mode
        self.rip = rip
        self.end = end
        self.description = description
        self.notes = notes


def load_linux(
    memory: GuestMemory,
    kernel: memoryview,
    *,
    initrd: memoryview | None = None,
    cmdline: str = "",
    vcpus: int = 1,
    rsdp: int = 0,
    rng: Callable[[int], bytes] = os.urandom,
) -> Entry:
    """Loads a Linux kernel, its initrd and everything that the boot protocol wants into `memory`.

    `kernel` is a whole bzImage or ELF file.  `memory` is fresh: the kernel's zeroed data is not zeroed again.
    `rsdp` is where ACPI's root pointer is, 0 when there is none.
    Raises `ImageError` for a kernel that cannot be used, and `ConfigError` for a command line that is too long
    or a machine that has too little memory.
    """
    if elf.is_elf(kernel):
        header = bootparams.synthetic_header(_VMLINUX_CMDLINE_SIZE, _VMLINUX_INITRD_ADDR_MAX)
        line = encode_cmdline(cmdline, _VMLINUX_CMDLINE_SIZE)
        initrd_addr_max = _VMLINUX_INITRD_ADDR_MAX
        loaded = _load_elf(memory, Elf(kernel), "vmlinux")
    else:
        image = BzImage(kernel)
        header = image.header
        line = encode_cmdline(cmdline, image.cmdline_size)
        initrd_addr_max = image.initrd_addr_max
        loaded = _load_payload(memory, image)
    placed = _load_initrd(memory, initrd, loaded.end, initrd_addr_max)
    memory.write(layout.COMMAND_LINE, line)
    write_mp_tables(memory, vcpus)
    zero_page = bootparams.write_zero_page(
        memory,
        header,
        table=bootparams.e820(memory.regions),
        initrd=placed,
        code32_start=layout.HIGH_MEMORY,
        rng=rng,
        rsdp=rsdp,
    )
    return _enter(memory, loaded, zero_page)


def _load_payload(memory: GuestMemory, image: BzImage) -> _Kernel:
    """The kernel inside a bzImage, unpacked here or else left to its own decompressor."""
    if image.payload is None:
        return _load_decompressor(memory, image, "no payload named")
    if elf.is_elf(image.payload):
        return _load_elf(memory, Elf(image.payload), "bzImage, payload not compressed", image.init_size)
    name = unpack.recognise(image.payload)
    if name is None:
        return _load_decompressor(memory, image, "payload in an unknown format")
    try:
        vmlinux = unpack.unpack(image.payload, min(memory.size, UNPACKED_MAX))
    except unpack.MissingLibraryError as error:
        return _load_decompressor(memory, image, f"{name} payload", f"The guest unpacks its kernel itself: {error}.")
    return _load_elf(memory, Elf(memoryview(vmlinux)), f"bzImage, {name} payload unpacked", image.init_size)


def _load_elf(memory: GuestMemory, file: Elf, what: str, init_size: int = 0) -> _Kernel:
    entry = file.physical_entry
    if file.start < layout.HIGH_MEMORY:
        raise ImageError(f"its ELF file loads at {file.start:#x}, below 1 MiB, as no Linux kernel does")
    end = max(file.end, file.start + init_size)
    check_fits(memory, end)
    load_segments(memory, file)
    mode = LONG if file.bits == 64 else PROTECTED
    return _Kernel(mode, entry, end, f"{what}, {file.bits}-bit entry")


def _load_decompressor(memory: GuestMemory, image: BzImage, what: str, *notes: str) -> _Kernel:
    address = layout.HIGH_MEMORY
    # It unpacks to where it is, or to where the kernel wants to be, whichever is higher.
    target = max(address, image.pref_address)
    end = max(address + len(image.code), target + (image.init_size or _UNKNOWN_INIT_SIZE * len(image.code)))
    check_fits(memory, end)
    memory.write(address, image.code)
    if image.has_64bit_entry:
        return _Kernel(LONG, address + ENTRY_64, end, f"bzImage, {what}, its own decompressor, 64-bit entry", notes)
    return _Kernel(PROTECTED, address, end, f"bzImage, {what}, its own decompressor, 32-bit entry", notes)


def _load_initrd(memory: GuestMemory, initrd: memoryview | None, kernel_end: int, addr_max: int) -> tuple[int, int]:
    if initrd is None or not len(initrd):
        return 0, 0
    return place_high(memory, initrd, kernel_end, min(low_ram_end(memory), addr_max + 1)), len(initrd)


def _enter(memory: GuestMemory, kernel: _Kernel, zero_page: int) -> Entry:
    """Writes the GDT and, for 64 bits, the page tables, and says how to enter the kernel."""
    gdt_base, gdt_limit = write_gdt(memory, 64 if kernel.mode == LONG else 32)
    return Entry(
        kernel.mode,
        kernel.rip,
        rsp=layout.BOOT_STACK_TOP,
        registers={"rsi": zero_page},
        cr3=build_identity_map(memory, layout.PAGE_TABLES) if kernel.mode == LONG else 0,
        gdt_base=gdt_base,
        gdt_limit=gdt_limit,
        description=kernel.description,
        notes=kernel.notes,
    )
