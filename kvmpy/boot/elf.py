"""ELF files, as far as booting one needs them: header, program headers, notes.

Little-endian x86, 32 and 64 bits ("System V Application Binary Interface", chapters 4 and 5).  Each number of
the file is checked before it is used; what makes no sense is an `ImageError`.
"""

from __future__ import annotations

import struct

from kvmpy.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ELF_MAGIC = b"\x7fELF"

ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB = 1
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4

# A kernel has about five; more than this is no kernel, and the bound keeps a hostile file cheap.
MAX_PROGRAM_HEADERS = 256
MAX_NOTES = 1024

# x86 physical addresses have at most 52 bits.
_PHYSICAL_END = 1 << 52

_HEADER = {ELFCLASS32: struct.Struct("<HHIIIIIHHH"), ELFCLASS64: struct.Struct("<HHIQQQIHHH")}
_PROGRAM_HEADER = {ELFCLASS32: struct.Struct("<IIIIIIII"), ELFCLASS64: struct.Struct("<IIQQQQQQ")}
_NOTE = struct.Struct("<III")
_IDENT_SIZE = 16


class Segment:
    """A program header: `filesz` bytes at `offset` of the file are `memsz` bytes at `paddr` (virtually `vaddr`)."""

    __slots__ = ("filesz", "flags", "memsz", "offset", "paddr", "type", "vaddr")

    def __init__(self, type: int, flags: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int) -> None:
        self.type = type
        self.flags = flags
        self.offset = offset
        self.vaddr = vaddr
        self.paddr = paddr
        self.filesz = filesz
        self.memsz = memsz

    @property
    def end(self) -> int:
        """The first physical address behind it."""
        return self.paddr + self.memsz

    def __repr__(self) -> str:
        return f"Segment({self.type}, {self.paddr:#x}..{self.end:#x})"


class Note:
    """A note: `name` without its NUL, `type`, and `desc`, a view into the file."""

    __slots__ = ("desc", "name", "type")

    def __init__(self, name: bytes, type: int, desc: memoryview) -> None:
        self.name = name
        self.type = type
        self.desc = desc


class Elf:
    """A parsed executable: `bits` (32 or 64), `entry` as the file has it, `segments`, `loads` by rising address.

    `data` is the whole file.  Raises `ImageError` for a file that is damaged or made for another machine.
    """

    __slots__ = ("bits", "data", "entry", "loads", "machine", "segments")

    def __init__(self, data: memoryview) -> None:
        self.data = data
        elf_class = _check_ident(data)
        self.bits = 32 if elf_class == ELFCLASS32 else 64
        header = _HEADER[elf_class]
        if len(data) < _IDENT_SIZE + header.size:
            raise ImageError("the ELF header is cut short")
        kind, self.machine, _, entry, phoff, _, _, _, phentsize, phnum = header.unpack_from(data, _IDENT_SIZE)
        self.entry: int = entry
        if self.machine != (EM_386 if self.bits == 32 else EM_X86_64):
            raise ImageError(f"the ELF file is for machine {self.machine} with {self.bits} bits, not for x86")
        if kind not in (ET_EXEC, ET_DYN):
            raise ImageError(f"the ELF file has type {kind}; a kernel is an executable (2 or 3)")
        self.segments = list(_segments(data, elf_class, phoff, phentsize, phnum))
        self.loads = sorted((s for s in self.segments if s.type == PT_LOAD and s.memsz), key=_paddr)
        if not self.loads:
            raise ImageError("the ELF file has nothing to load")
        for lower, upper in zip(self.loads, self.loads[1:], strict=False):
            if lower.end > upper.paddr:
                raise ImageError(f"two segments of the ELF file overlap at {upper.paddr:#x}")

    @property
    def start(self) -> int:
        """The lowest physical address that it takes."""
        return self.loads[0].paddr

    @property
    def end(self) -> int:
        """The first physical address behind it."""
        return self.loads[-1].end

    @property
    def physical_entry(self) -> int:
        """The entry point as a physical address; a virtual one is translated by the segment that holds it."""
        for segment in self.loads:
            if segment.paddr <= self.entry < segment.end:
                return self.entry
        for segment in self.loads:
            if segment.vaddr <= self.entry < segment.vaddr + segment.memsz:
                return self.entry - segment.vaddr + segment.paddr
        raise ImageError(f"the entry point {self.entry:#x} lies outside of what the ELF file loads")

    def notes(self) -> Iterator[Note]:
        """All notes of all note segments; a damaged one is an `ImageError`."""
        count = 0
        for segment in self.segments:
            if segment.type != PT_NOTE:
                continue
            position, end = segment.offset, segment.offset + segment.filesz
            while position + _NOTE.size <= end:
                count += 1
                if count > MAX_NOTES:
                    raise ImageError(f"the ELF file has more than {MAX_NOTES} notes")
                namesz, descsz, kind = _NOTE.unpack_from(self.data, position)
                name = position + _NOTE.size
                desc = name + (namesz + 3 & ~3)
                if name + namesz > end or desc + descsz > end:
                    raise ImageError("a note of the ELF file runs out of its segment")
                yield Note(bytes(self.data[name : name + namesz]).rstrip(b"\0"), kind, self.data[desc : desc + descsz])
                position = desc + (descsz + 3 & ~3)


def is_elf(data: memoryview) -> bool:
    """Whether `data` begins like an ELF file."""
    return data[:4] == ELF_MAGIC


def _paddr(segment: Segment) -> int:
    return segment.paddr


def _check_ident(data: memoryview) -> int:
    if not is_elf(data):
        raise ImageError("not an ELF file")
    if len(data) < _IDENT_SIZE:
        raise ImageError("the ELF header is cut short")
    elf_class, encoding = data[4], data[5]
    if elf_class not in _HEADER:
        raise ImageError(f"the ELF file has class {elf_class}, neither 32 (1) nor 64 bits (2)")
    if encoding != ELFDATA2LSB:
        raise ImageError("the ELF file is big-endian, not for x86")
    return elf_class


def _segments(data: memoryview, elf_class: int, phoff: int, phentsize: int, phnum: int) -> Iterator[Segment]:
    layout = _PROGRAM_HEADER[elf_class]
    if phnum > MAX_PROGRAM_HEADERS:
        raise ImageError(f"the ELF file has {phnum} program headers; {MAX_PROGRAM_HEADERS} are the most that is read")
    if phnum and phentsize != layout.size:
        raise ImageError(f"the ELF file's program headers are {phentsize} bytes each, not {layout.size}")
    if phoff + phnum * layout.size > len(data):
        raise ImageError("the ELF file ends before its program headers do")
    for index in range(phnum):
        fields = layout.unpack_from(data, phoff + index * layout.size)
        if elf_class == ELFCLASS32:
            kind, offset, vaddr, paddr, filesz, memsz, flags, _ = fields
        else:
            kind, flags, offset, vaddr, paddr, filesz, memsz, _ = fields
        if kind not in (PT_LOAD, PT_NOTE):
            continue
        if offset + filesz > len(data):
            raise ImageError(
                f"segment {index} of the ELF file ends at {offset + filesz:#x}, behind the end of the file"
            )
        if kind == PT_LOAD and (filesz > memsz or paddr + memsz > _PHYSICAL_END):
            raise ImageError(f"segment {index} of the ELF file has sizes that make no sense")
        yield Segment(kind, flags, offset, vaddr, paddr, filesz, memsz)
