"""Small ELF files and bzImages, written in code: inputs for tests of the loaders.

Every field can be set to nonsense.
"""

from __future__ import annotations

import struct

from kvmpy.boot.elf import ELFCLASS32, ELFCLASS64, ELFDATA2LSB, EM_386, EM_X86_64, ET_EXEC, PT_LOAD, PT_NOTE
from kvmpy.units import MIB
from kvmpy.x86.bootparams import LOADED_HIGH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Where Linux is linked to, virtually; physical address 0 of a segment is here.
KERNEL_BASE = 0xFFFFFFFF80000000

SETUP_SECTS = 3
HEADER_END = 0x26C


class ElfSegment:
    """A segment to write: `data` at physical `paddr`, `memsz` bytes in memory (by default as many as in the file)."""

    def __init__(self, paddr: int, data: bytes, *, memsz: int | None = None, type: int = PT_LOAD) -> None:
        self.paddr = paddr
        self.data = data
        self.memsz = len(data) if memsz is None else memsz
        self.type = type


def elf_note(name: bytes, type: int, desc: bytes) -> bytes:
    """One ELF note, padded to 4 bytes."""
    owner = name + b"\0"
    padded = owner.ljust(len(owner) + 3 & ~3, b"\0") + desc.ljust(len(desc) + 3 & ~3, b"\0")
    return struct.pack("<III", len(owner), len(desc), type) + padded


def elf_image(
    segments: Sequence[ElfSegment],
    *,
    entry: int | None = None,
    bits: int = 64,
    machine: int | None = None,
    type: int = ET_EXEC,
    notes: bytes = b"",
) -> bytes:
    """An ELF executable with these segments, entered at `entry` (by default where the first segment starts)."""
    headers = [*segments]
    if notes:
        headers.append(ElfSegment(0, notes, type=PT_NOTE))
    if entry is None:
        entry = segments[0].paddr if segments else 0
    wide = bits == 64
    header_size, entry_size = (64, 56) if wide else (52, 32)
    offset = header_size + entry_size * len(headers)
    table, body = b"", b""
    for segment in headers:
        size = len(segment.data)
        base = KERNEL_BASE if wide else KERNEL_BASE & 0xFFFFFFFF
        vaddr = segment.paddr + base & (1 << bits) - 1
        if wide:
            table += struct.pack("<IIQQQQQQ", segment.type, 7, offset, vaddr, segment.paddr, size, segment.memsz, 1)
        else:
            table += struct.pack("<IIIIIIII", segment.type, offset, vaddr, segment.paddr, size, segment.memsz, 7, 1)
        body += segment.data
        offset += size
    ident = b"\x7fELF" + bytes([ELFCLASS64 if wide else ELFCLASS32, ELFDATA2LSB, 1]) + bytes(9)
    if machine is None:
        machine = EM_X86_64 if wide else EM_386
    form = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    rest = (type, machine, 1, entry, header_size, 0, 0, header_size, entry_size, len(headers), 0, 0, 0)
    return ident + struct.pack(form, *rest) + table + body


def bzimage(
    payload: bytes,
    *,
    version: int = 0x020F,
    loadflags: int = LOADED_HIGH,
    xloadflags: int = 1,
    payload_offset: int | None = None,
    payload_length: int | None = None,
    cmdline_size: int = 2047,
    initrd_addr_max: int = 0x7FFFFFFF,
    pref_address: int = 16 * MIB,
    init_size: int = MIB,
    head: bytes = b"\xf4" * 0x400,
) -> bytes:
    """A bzImage whose protected-mode code is `head`, standing for the decompressor, and then `payload`."""
    code = head + payload
    code = code.ljust(len(code) + 15 & ~15, b"\0")
    image = bytearray((SETUP_SECTS + 1) * 512)
    image[0x1F1] = SETUP_SECTS
    struct.pack_into("<I", image, 0x1F4, len(code) // 16)
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x200:0x202] = bytes([0xEB, HEADER_END - 0x202])
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    image[0x211] = loadflags
    struct.pack_into("<I", image, 0x214, MIB)
    struct.pack_into("<II", image, 0x22C, initrd_addr_max, 2 * MIB)
    struct.pack_into("<BBHI", image, 0x234, 1, 21, xloadflags, cmdline_size)
    struct.pack_into("<I", image, 0x248, len(head) if payload_offset is None else payload_offset)
    struct.pack_into("<I", image, 0x24C, len(payload) if payload_length is None else payload_length)
    struct.pack_into("<QI", image, 0x258, pref_address, init_size)
    return bytes(image) + code


def multiboot_header(flags: int = 3, addresses: Sequence[int] = (), *, checksum: int | None = None) -> bytes:
    """A multiboot 1 header; `addresses` are its header_addr, load_addr, load_end_addr, bss_end_addr and entry_addr."""
    magic = 0x1BADB002
    if checksum is None:
        checksum = -(magic + flags) & 0xFFFFFFFF
    return struct.pack(f"<{3 + len(addresses)}I", magic, flags, checksum, *addresses)
