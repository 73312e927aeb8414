"""From a file to guest memory and the registers of the first CPU.

`load` recognises the file; `Entry` is what it gives.
"""

from __future__ import annotations

import os

from kvmpy.boot.bzimage import is_bzimage
from kvmpy.boot.elf import is_elf
from kvmpy.boot.entry import Entry
from kvmpy.boot.linux import load_linux
from kvmpy.boot.source import looks_like, open_image
from kvmpy.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.boot.source import Source
    from kvmpy.memory import GuestMemory

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
    read or is no kernel, and `ConfigError` for options that this kernel or this machine cannot have.
    """
    image = open_image(kernel, "kernel")
    disk = None if initrd is None else open_image(initrd, "initrd")
    name = f"the kernel {os.fspath(kernel)!r}" if isinstance(kernel, (str, os.PathLike)) else "the kernel"
    if not (is_elf(image) or is_bzimage(image)):
        raise ImageError(f"{name} is neither a bzImage nor an ELF file; it looks like {looks_like(image)}")
    try:
        return load_linux(memory, image, initrd=disk, cmdline=cmdline, vcpus=vcpus, rng=rng)
    except ImageError as error:
        raise ImageError(f"{name} cannot be booted: {error}") from error
