"""From a file to guest memory and the registers of the first CPU.

`recognise` finds a file's protocol, `load` loads it, and `Entry` is what that gives.
"""

from __future__ import annotations

import os

from kvmpy.boot.entry import Entry
from kvmpy.boot.place import MODULES_MAX, Module
from kvmpy.boot.recognise import AUTO, LINUX, MULTIBOOT, PROTOCOLS, PVH, Kernel, recognise
from kvmpy.boot.source import open_image
from kvmpy.errors import ConfigError, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.boot.source import Source
    from kvmpy.memory import GuestMemory

__all__ = ["PROTOCOLS", "Entry", "Kernel", "load", "recognise"]


def load(
    memory: GuestMemory,
    kernel: Source | Kernel,
    *,
    protocol: str = AUTO,
    initrd: Source | None = None,
    cmdline: str = "",
    vcpus: int = 1,
    rsdp: int = 0,
    rng: Callable[[int], bytes] = os.urandom,
) -> Entry:
    """Loads `kernel` and `initrd`, each a path or the bytes themselves, into `memory`, which must be fresh.

    `kernel` may be what `recognise` gave, and has its protocol then; else `protocol` is one of `PROTOCOLS`.  For a
    multiboot or PVH guest a text as `initrd` is a list of modules, `FILE [ARGUMENTS],FILE ...`, where `,,` stands
    for a comma in a name.  `rsdp` is where ACPI's root pointer is, 0 when there is none.  `rng(n)` gives n random
    bytes, the seed of Linux' own.  Raises `ImageError` for a file that cannot be read or is no kernel, and
    `ConfigError` for options that this kernel or this machine cannot have.
    """
    found = kernel if isinstance(kernel, Kernel) else recognise(kernel, protocol)
    image = found.image
    disk = open_image(initrd, "initrd") if found.protocol == LINUX and initrd is not None else None
    modules = _modules(initrd) if found.protocol in (MULTIBOOT, PVH) else []
    try:
        if found.protocol == LINUX:
            from kvmpy.boot.linux import load_linux

            return load_linux(memory, image, initrd=disk, cmdline=cmdline, vcpus=vcpus, rsdp=rsdp, rng=rng)
        if found.protocol == PVH:
            from kvmpy.boot.pvh import load_pvh

            return load_pvh(memory, image, modules=modules, cmdline=cmdline, vcpus=vcpus, rsdp=rsdp)
        if found.protocol == MULTIBOOT:
            from kvmpy.boot.multiboot import load_multiboot

            name = found.file_name
            return load_multiboot(memory, image, name=name, modules=modules, cmdline=cmdline, vcpus=vcpus)
    except ImageError as error:
        raise ImageError(f"{found.name} cannot be booted: {error}") from error
    if initrd is not None:
        raise ConfigError("initrd", "a flat binary takes none")
    if cmdline:
        raise ConfigError("append", "a flat binary takes no command line")
    from kvmpy.boot.flat import load_flat

    return load_flat(memory, image, found.protocol)


def _modules(initrd: Source | None) -> list[Module]:
    """The modules that `initrd` lists, as QEMU's -initrd does."""
    if initrd is None:
        return []
    if not isinstance(initrd, str):
        text = os.fspath(initrd) if isinstance(initrd, os.PathLike) else "initrd"
        return [Module(open_image(initrd, "initrd"), text)]
    texts = [part.replace("\0", ",") for part in initrd.replace(",,", "\0").split(",")]
    if len(texts) > MODULES_MAX:
        raise ConfigError("initrd", f"{len(texts)} modules are more than {MODULES_MAX}")
    return [Module(open_image(text.partition(" ")[0], "module"), text) for text in texts]
