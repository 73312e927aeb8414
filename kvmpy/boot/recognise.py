"""Which protocol a kernel file is for.

Linux' bzImage comes first, by its own magic.  A multiboot header comes before all that ELF says: its writer put it
there for a loader to find, and the file may even be no ELF.  Of ELF files those with notes of Linux' own are Linux,
entered in its 64-bit (or 32-bit) mode although most have a PVH entry too: it is the shorter way, and the zero page
says more.  The PVH entry is for all others that have one.  What is left is taken for a Linux built without notes.
"""

from __future__ import annotations

import os
import struct

from kvmpy.boot.bzimage import BzImage, is_bzimage
from kvmpy.boot.elf import Elf, is_elf
from kvmpy.boot.source import looks_like, open_image
from kvmpy.errors import ConfigError, ImageError
from kvmpy.units import KIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.boot.source import Source

AUTO, LINUX, MULTIBOOT, PVH = "auto", "linux", "multiboot", "pvh"
FLAT16, FLAT32, FLAT64 = "flat16", "flat32", "flat64"
FLAT = (FLAT16, FLAT32, FLAT64)
PROTOCOLS = (AUTO, LINUX, MULTIBOOT, PVH, *FLAT)

LINUX_NOTE = b"Linux"
XEN_NOTE = b"Xen"
XEN_ELFNOTE_PHYS32_ENTRY = 18

MULTIBOOT_HEADER_MAGIC = 0x1BADB002
# The header lies wholly in so many first bytes: magic, flags, checksum, and more by the flags.
MULTIBOOT_SEARCH = 8 * KIB
MULTIBOOT_HEADER = struct.Struct("<III")

_MULTIBOOT2_MAGIC = 0xE85250D6
_MULTIBOOT2_SEARCH = 32 * KIB


class Kernel:
    """A kernel file and what is done with it.

    `image` is all of it; `name` is for messages; `file_name` is as it was given, or `kernel` for bytes; `protocol`
    is one of `PROTOCOLS` but `auto`, with `@ADDRESS` behind a flat one where that was asked for; `is_linux` says that
    it takes Linux' command line.
    """

    __slots__ = ("file_name", "image", "is_linux", "name", "protocol")

    def __init__(self, image: memoryview, name: str, file_name: str, protocol: str, is_linux: bool) -> None:
        self.image = image
        self.name = name
        self.file_name = file_name
        self.protocol = protocol
        self.is_linux = is_linux

    @property
    def is_flat(self) -> bool:
        """Whether it is plain code, which expects a bare processor."""
        return self.protocol.partition("@")[0] in FLAT

    def __repr__(self) -> str:
        return f"Kernel({self.name}, {self.protocol})"


def recognise(source: Source, protocol: str = AUTO) -> Kernel:
    """Opens the kernel `source`, a path or the bytes themselves, and finds its protocol unless one is given.

    Raises `ImageError` for a file that cannot be read or is no kernel, and `ConfigError` for an unknown protocol.
    """
    flat = protocol.partition("@")[0] in FLAT
    if not flat and protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ConfigError(
            "protocol", f"{protocol!r} is none of {known}; a flat one may have an address, flat32@0x200000"
        )
    image = open_image(source, "kernel")
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    name = "the kernel" if path is None else f"the kernel {path!r}"
    is_linux = protocol == LINUX
    try:
        if protocol == AUTO:
            protocol, is_linux = _examine(image)
        elif protocol == PVH:
            is_linux = _has_linux_note(Elf(image))
    except ImageError as error:
        raise ImageError(f"{name} cannot be booted: {error}") from error
    return Kernel(image, name, path or "kernel", protocol, is_linux)


def _examine(image: memoryview) -> tuple[str, bool]:
    """A file's protocol, and whether it is Linux."""
    if is_bzimage(image):
        # Others use its boot protocol too; a file that holds no compressed kernel is one of them.
        return LINUX, BzImage(image).payload is not None
    if find_header(image) is not None:
        return MULTIBOOT, False
    if not is_elf(image):
        raise ImageError(
            f"it is neither a bzImage nor an ELF file; it looks like {looks_like(image)}; "
            "for a flat binary name the protocol flat16, flat32 or flat64"
        )
    file = Elf(image)
    if _has_linux_note(file):
        return LINUX, True
    if pvh_entry(file) is not None:
        return PVH, False
    if _has_multiboot2_header(image):
        raise ImageError("it is for multiboot 2, which is not known here; multiboot 1 and PVH are")
    return LINUX, True


def _has_linux_note(file: Elf) -> bool:
    return any(note.name == LINUX_NOTE for note in file.notes())


def _has_multiboot2_header(image: memoryview) -> bool:
    head = bytes(image[:_MULTIBOOT2_SEARCH])
    offset = head.find(struct.pack("<I", _MULTIBOOT2_MAGIC))
    if offset < 0 or offset % 8 or offset + 16 > len(head):
        return False
    return not sum(struct.unpack_from("<IIII", head, offset)) & 0xFFFFFFFF


def find_header(image: memoryview) -> int | None:
    """The offset of the multiboot header, or None: the first one that its checksum makes true."""
    head = bytes(image[:MULTIBOOT_SEARCH])
    magic = struct.pack("<I", MULTIBOOT_HEADER_MAGIC)
    offset = head.find(magic)
    while offset >= 0:
        whole = offset % 4 == 0 and offset + MULTIBOOT_HEADER.size <= len(head)
        if whole and not sum(MULTIBOOT_HEADER.unpack_from(head, offset)) & 0xFFFFFFFF:
            return offset
        offset = head.find(magic, offset + 1)
    return None


def pvh_entry(file: Elf) -> int | None:
    """The physical address of the PVH entry that the file's note names; None without such a note."""
    for note in file.notes():
        if note.name == XEN_NOTE and note.type == XEN_ELFNOTE_PHYS32_ENTRY:
            if len(note.desc) not in (4, 8):
                raise ImageError(f"its note of the PVH entry has {len(note.desc)} bytes, not 4 or 8")
            return int.from_bytes(note.desc, "little")
    return None
