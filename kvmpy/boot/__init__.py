"""From a file to guest memory and the registers of the first CPU.

`load` recognises the file; `Entry` is what it gives.
"""

from __future__ import annotations

import mmap
import os
import stat

from kvmpy.boot.bzimage import is_bzimage
from kvmpy.boot.elf import is_elf
from kvmpy.boot.entry import Entry
from kvmpy.boot.linux import load_linux
from kvmpy.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.memory import GuestMemory

    Source = str | os.PathLike[str] | bytes | bytearray | memoryview | mmap.mmap

__all__ = ["Entry", "load"]


def load(
    memory: GuestMemory,
    kernel: Source,
    *,
    initrd: Source | None = None,
    cmdline: str = "",
    vcpus: int = 1,
    rng: Callable[[int], bytes] = os.urandom,
) -> Entry:
    """Loads `kernel` and `initrd`, each a path or the bytes themselves, into `memory`, which must be fresh.

    `rng(n)` gives n random bytes, the seed of the guest's own.  Raises `ImageError` for a file that cannot be
    read or is no kernel, and `ConfigError` for options that this kernel cannot have.
    """
    image = open_image(kernel, "kernel")
    if not (is_elf(image) or is_bzimage(image)):
        name = "the kernel" if isinstance(kernel, (bytes, bytearray, memoryview, mmap.mmap)) else os.fspath(kernel)
        raise ImageError(f"{name} is neither a bzImage nor an ELF file; it looks like {looks_like(image)}")
    disk = None if initrd is None else open_image(initrd, "initrd")
    return load_linux(memory, image, initrd=disk, cmdline=cmdline, vcpus=vcpus, rng=rng)


def open_image(source: Source, what: str) -> memoryview:
    """A read-only view of all of `source`; a file is mapped and stays so as long as a view of it lives."""
    if isinstance(source, (bytes, bytearray, memoryview, mmap.mmap)):
        return memoryview(source).cast("B").toreadonly()
    path = os.fspath(source)
    try:
        # A FIFO must not keep us waiting for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise ImageError(f"the {what} {path!r} cannot be opened: {reason}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"the {what} {path!r} is not a regular file")
        if not status.st_size:
            raise ImageError(f"the {what} {path!r} is empty")
        return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ImageError(f"the {what} {path!r} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def looks_like(image: memoryview) -> str:
    """What a file that is no kernel seems to be, in a few words."""
    from kvmpy.boot.unpack import recognise

    return recognise(image) or "nothing known"
