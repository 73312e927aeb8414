"""Images as they come: a path or bytes, and what a file that is no kernel seems to be."""

from __future__ import annotations

import mmap
import os
import stat

from kvmpy.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    Source = str | os.PathLike[str] | bytes | bytearray | memoryview | mmap.mmap

# (offset, magic, what has it): what people hand over in place of a kernel.
_LOOKS = (
    (0, b"\x1f\x8b", "a gzip file; unpack it first"),
    (0, b"\xfd7zXZ\0", "an xz file; unpack it first"),
    (0, b"BZh", "a bzip2 file; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first"),
    (0, b"\x02\x21\x4c\x18", "an lz4 file; unpack it first"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file; unpack it first"),
    (0, b"\x89LZO", "an lzop file; unpack it first"),
    (0, b"070701", "an initramfs (cpio); give it as the initrd"),
    (0, b"070702", "an initramfs (cpio); give it as the initrd"),
    (0, b"!<arch>\n", "a Debian package or a static library"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image, not for x86"),
    (0, b"#!", "a script"),
    (56, b"ARM\x64", "a kernel for 64-bit ARM"),
    (56, b"RSC\x05", "a kernel for RISC-V"),
    (257, b"ustar", "a tar file"),
    (0x438, b"\x53\xef", "an ext2/3/4 file system"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0, b"MZ", "an EFI or Windows program"),
    (510, b"\x55\xaa", "a boot sector or disk image"),
)

_SHOWN = 512


def open_image(source: Source, what: str) -> memoryview:
    """A read-only view of all of `source`.

    A file is read whole: were it mapped, whoever cut it short meanwhile would kill us with SIGBUS.

    `what` names the image in the `ImageError` for a file that cannot be read, is empty, or is not a file.
    """
    if isinstance(source, (bytes, bytearray, memoryview, mmap.mmap)):
        view = memoryview(source)
        return (view if view.c_contiguous else memoryview(bytes(view))).cast("B").toreadonly()
    path = os.fspath(source)
    try:
        # A FIFO must not keep us waiting for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:
        raise ImageError(f"the {what} {path!r} is not a path: {error}") from error
    except OSError as error:
        raise ImageError(f"the {what} {path!r} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"the {what} {path!r} is not a regular file")
        if not status.st_size:
            raise ImageError(f"the {what} {path!r} is empty")
        with open(fd, "rb", buffering=0, closefd=False) as file:
            return memoryview(file.read(status.st_size) or b"").toreadonly()
    except (OSError, ValueError) as error:
        raise ImageError(f"the {what} {path!r} cannot be read: {error}") from error
    finally:
        os.close(fd)


def looks_like(image: memoryview) -> str:
    """What a file that is no kernel seems to be, in a few words."""
    for offset, magic, name in _LOOKS:
        if image[offset : offset + len(magic)] == magic:
            return name
    head = bytes(image[:_SHOWN])
    if not head.strip(b"\0"):
        return "zeros" if head else "nothing, it is empty"
    if all(32 <= byte < 127 or byte in b"\t\n\r\f" for byte in head):
        return "text"
    return f"nothing known (it begins with {head[:4].hex(' ')})"
