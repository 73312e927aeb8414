"""bzImage: the setup header of a Linux kernel file, by the kernel's Documentation/arch/x86/boot.rst.

Fields are named as the document names them; one that the file's protocol version does not have yet gets the
value that the document gives for older kernels.
"""

from __future__ import annotations

import struct

from kvmpy.errors import ImageError
from kvmpy.x86 import layout
from kvmpy.x86.bootparams import BOOT_FLAG, BOOT_FLAG_MAGIC, HEADER, HEADER_MAGIC, LOADED_HIGH, SETUP_HEADER

XLF_KERNEL_64 = 1 << 0
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1

# Offset of the 64-bit entry point from the start of the protected-mode code.
ENTRY_64 = 0x200

_SECTOR = 512
_HEADER_MIN = 0x228
_HEADER_MAX = 0x290

# Documented values for kernels that do not say.
_OLD_INITRD_ADDR_MAX = 0x37FFFFFF
_OLD_CMDLINE_SIZE = 255


class BzImage:
    """A parsed bzImage: the setup header's fields, `header` (its bytes from 0x1f1 on), `code`, `payload`.

    `code` is a view of the protected-mode code, `payload` of the compressed kernel inside it, None before
    protocol 2.08.  Raises `ImageError` for a file that is damaged or too old.
    """

    __slots__ = (
        "cmdline_size", "code", "code32_start", "header", "init_size", "initrd_addr_max", "kernel_alignment",
        "loadflags", "payload", "payload_length", "payload_offset", "pref_address", "relocatable_kernel", "setup_sects",
        "syssize", "version", "xloadflags",
    )  # fmt: skip

    def __init__(self, data: memoryview) -> None:
        if not is_bzimage(data):
            raise ImageError("not a bzImage")
        if len(data) < _HEADER_MAX:
            raise ImageError("the bzImage's setup header is cut short")
        self.setup_sects = data[SETUP_HEADER] or 4
        self.syssize = _u32(data, 0x1F4)
        self.version = _u16(data, 0x206)
        self.loadflags = data[0x211]
        self.code32_start = _u32(data, 0x214)
        if self.version < 0x0200 or not self.loadflags & LOADED_HIGH:
            raise ImageError("the kernel is a zImage, loaded below 1 MiB; build a bzImage")
        # The byte at 0x201 is the length of a jump over the header, so it says where the header ends.
        end = min(0x202 + data[0x201], _HEADER_MAX)
        if end < _HEADER_MIN:
            raise ImageError("the bzImage's setup header is cut short")
        fields = bytes(data[:end]).ljust(_HEADER_MAX, b"\0")
        self.header = fields[SETUP_HEADER:end]
        version = self.version
        self.initrd_addr_max = _u32(fields, 0x22C) if version >= 0x0203 else _OLD_INITRD_ADDR_MAX
        self.kernel_alignment = _u32(fields, 0x230) if version >= 0x0205 else 0
        self.relocatable_kernel = bool(fields[0x234]) if version >= 0x0205 else False
        self.cmdline_size = _u32(fields, 0x238) if version >= 0x0206 else _OLD_CMDLINE_SIZE
        self.payload_offset = _u32(fields, 0x248) if version >= 0x0208 else 0
        self.payload_length = _u32(fields, 0x24C) if version >= 0x0208 else 0
        self.pref_address = _u64(fields, 0x258) if version >= 0x020A else layout.HIGH_MEMORY
        self.init_size = _u32(fields, 0x260) if version >= 0x020A else 0
        self.xloadflags = _u16(fields, 0x236) if version >= 0x020C else 0
        self.code = self._code(data)
        self.payload = self._payload()

    @property
    def protocol(self) -> str:
        """The boot protocol's version as people write it: `2.15`."""
        return f"{self.version >> 8}.{self.version & 0xFF:02}"

    @property
    def has_64bit_entry(self) -> bool:
        """Whether the kernel may be entered in 64-bit mode, 0x200 behind its load address."""
        return bool(self.xloadflags & XLF_KERNEL_64)

    def _code(self, data: memoryview) -> memoryview:
        start = (self.setup_sects + 1) * _SECTOR
        # 16-byte units; before protocol 2.04 only 16 bits of it counted, so the file's own end is as good.
        size = self.syssize * 16 if self.version >= 0x0204 else len(data) - start
        # The build may leave out up to a unit of padding at the end.
        if size <= 0 or start + size > len(data) + 15:
            raise ImageError(
                f"the bzImage is cut short: it has {len(data)} bytes and its setup header says {start + size}"
            )
        return data[start : start + size]

    def _payload(self) -> memoryview | None:
        if not self.payload_offset or not self.payload_length:
            return None
        end = self.payload_offset + self.payload_length
        if end > len(self.code):
            raise ImageError("the bzImage's payload runs out of the file")
        return self.code[self.payload_offset : end]


def is_bzimage(data: memoryview) -> bool:
    """Whether `data` has the boot flag and the header magic `HdrS` where a bzImage has them."""
    return len(data) >= HEADER + 4 and _u16(data, BOOT_FLAG) == BOOT_FLAG_MAGIC and _u32(data, HEADER) == HEADER_MAGIC


def _u16(data: memoryview | bytes, offset: int) -> int:
    return int(struct.unpack_from("<H", data, offset)[0])


def _u32(data: memoryview | bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", data, offset)[0])


def _u64(data: memoryview | bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", data, offset)[0])
