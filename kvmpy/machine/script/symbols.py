"""Names for addresses: from the symbol table of an ELF file, or from a System.map.

ELF: "System V Application Binary Interface", chapter 4.  A file is not trusted: what makes no sense is an `ImageError`.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right

from kvmpy.boot.elf import ELF_MAGIC, ELFCLASS32, ELFCLASS64, ELFDATA2LSB
from kvmpy.boot.source import open_image
from kvmpy.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SHT_SYMTAB = 2
SHN_UNDEF = 0
SHN_LORESERVE = 0xFF00
STT_SECTION, STT_FILE, STT_TLS = 3, 4, 6

# A kernel with everything has some 200,000 symbols.
MOST_SYMBOLS = 4 << 20
MOST_MAP_BYTES = 256 << 20

# By class: where the header says (offset, entry size and number) of the sections, the section header's fields that are
# looked at (type, offset, size, link), and a symbol's (name, info, section, value).
_SECTIONS = {ELFCLASS32: ("<I", 0x20, 0x2E), ELFCLASS64: ("<Q", 0x28, 0x3A)}
_SECTION = {ELFCLASS32: struct.Struct("<4xI8xIII12x"), ELFCLASS64: struct.Struct("<4xI16xQQI20x")}
_SYMBOL = {ELFCLASS32: struct.Struct("<IIIBxH"), ELFCLASS64: struct.Struct("<IBxHQ8x")}


class Symbols:
    """Names and their addresses; of two symbols with one name the first counts, of two at one address the last.

    `len` is the number of names, `in` asks for one.
    """

    def __init__(self, symbols: Iterable[tuple[str, int]] | Mapping[str, int] = ()) -> None:
        pairs = symbols.items() if hasattr(symbols, "items") else symbols
        self._addresses: dict[str, int] = {}
        by_address: dict[int, str] = {}
        for name, address in pairs:
            self._addresses.setdefault(name, address)
            by_address[address] = name
        self._starts = sorted(by_address)
        self._names = [by_address[start] for start in self._starts]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Symbols:
        """Those of an ELF file with a symbol table (not stripped), or of a System.map; else `ImageError`."""
        name = os.fspath(path)
        data = open_image(name, "file of symbols")
        if data[:4] == ELF_MAGIC:
            return cls(_elf_symbols(data, name))
        return cls(_map_symbols(bytes(data[:MOST_MAP_BYTES]), name))

    def __len__(self) -> int:
        return len(self._addresses)

    def __contains__(self, name: str) -> bool:
        return name in self._addresses

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def address(self, name: str) -> int:
        """Where `name` is; `KeyError`, which says it, for a name that is not there."""
        try:
            return self._addresses[name]
        except KeyError:
            raise KeyError(f"there is no symbol {name!r}") from None

    def nearest(self, address: int) -> tuple[str, int] | None:
        """The last symbol at or before `address`, and how far behind it that is; None before the first."""
        index = bisect_right(self._starts, address) - 1
        return (self._names[index], address - self._starts[index]) if index >= 0 else None

    def describe(self, address: int) -> str:
        """`address` for people: `start_kernel+0x10`, or the number alone."""
        found = self.nearest(address)
        if found is None:
            return f"{address:#x}"
        name, offset = found
        return f"{name}+{offset:#x}" if offset else name

    def shifted(self, by: int) -> Symbols:
        """The same names `by` bytes further up: a kernel that was loaded elsewhere than it was linked for."""
        return Symbols((name, address + by & (1 << 64) - 1) for name, address in self._addresses.items())


def _elf_symbols(data: memoryview, path: str) -> Iterator[tuple[str, int]]:
    def damaged() -> ImageError:
        return ImageError(f"{path}: the ELF file's symbol table is damaged")

    if len(data) < 0x40 or data[4] not in _SYMBOL or data[5] != ELFDATA2LSB:
        raise ImageError(f"{path}: not an ELF file for x86")
    kind = data[4]
    form, where, numbers = _SECTIONS[kind]
    section, symbol = _SECTION[kind], _SYMBOL[kind]
    (start,) = struct.unpack_from(form, data, where)
    entry_size, count = struct.unpack_from("<HH", data, numbers)
    if not start or not count:
        raise ImageError(f"{path}: the ELF file has no symbols; it is stripped")
    if entry_size < section.size or start + entry_size * count > len(data):
        raise damaged()
    sections = [section.unpack_from(data, start + entry_size * index) for index in range(count)]
    table = next((entry for entry in sections if entry[0] == SHT_SYMTAB), None)
    if table is None:
        raise ImageError(f"{path}: the ELF file has no symbols; it is stripped")
    _, offset, size, link = table
    if link >= count or offset + size > len(data) or size // symbol.size > MOST_SYMBOLS:
        raise damaged()
    _, names, names_size, _ = sections[link]
    if names + names_size > len(data):
        raise damaged()
    strings = bytes(data[names : names + names_size])
    for fields in symbol.iter_unpack(data[offset : offset + size // symbol.size * symbol.size]):
        if kind == ELFCLASS64:
            name, info, home, value = fields
        else:
            name, value, _, info, home = fields
        if home == SHN_UNDEF or home >= SHN_LORESERVE or info & 0xF in (STT_SECTION, STT_FILE, STT_TLS):
            continue
        end = strings.find(b"\0", name)
        text = strings[name:end].decode(errors="replace") if name < end else ""
        if text:
            yield text, value


def _map_symbols(text: bytes, path: str) -> Iterator[tuple[str, int]]:
    lines = text.splitlines()
    if len(lines) > MOST_SYMBOLS:
        raise ImageError(f"{path}: more symbols than any kernel has")
    for number, line in enumerate(lines, 1):
        fields = line.split()
        try:
            address, kind, name = int(fields[0], 16), fields[1], fields[2]
        except (IndexError, ValueError):
            raise ImageError(f"{path}, line {number}: neither an ELF file nor a System.map") from None
        if kind not in (b"A", b"a", b"U"):
            yield name.decode(errors="replace"), address
