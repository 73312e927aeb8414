"""Where kvmpy keeps kernels, and which one `kvmpy boot` takes when none is named.

Light on purpose: it runs between the command and the guest's first instruction.

    <cache>/kernels/base-1a2b3c4d5e6f/   vmlinux bzImage config System.map kernel.json   (built)
    <cache>/kernels/base                 a link to the one built last
    <cache>/kernels/fetched              a link to the distribution's kernel fetched last: vmlinuz, lib/modules/
"""

from __future__ import annotations

import os

from kvmpy.host.cache import cache_folder

FLAVOURS = ("base", "full")
FETCHED = "fetched"

NO_KERNEL = (
    "there is no kernel to boot: `kvmpy kernel build` builds a small one, "
    "`kvmpy kernel fetch` gets the distribution's, or name a file"
)


def kernels_folder() -> str:
    """Where built and fetched kernels live; it need not exist."""
    return os.path.join(cache_folder(), "kernels")


def find_default_kernel(boot_folder: str = "/boot", *, full: bool = False) -> str | None:
    """The kernel built last (base before full), else the one fetched, else the newest readable `/boot/vmlinuz-*`.

    With `full` the base kernel comes last: it has neither SMP nor PCI.  None when there is none: `NO_KERNEL` is the
    sentence to say then.
    """
    folder = kernels_folder()
    base, *others = (os.path.join(folder, flavour, "vmlinux") for flavour in FLAVOURS)
    others.append(os.path.join(folder, FETCHED, "vmlinuz"))
    for path in (*others, base) if full else (base, *others):
        if os.access(path, os.R_OK):
            return path
    return _newest(boot_folder)


def _newest(boot_folder: str) -> str | None:
    try:
        names = [name for name in os.listdir(boot_folder) if name.startswith("vmlinuz-")]
    except OSError:
        return None
    paths = [os.path.join(boot_folder, name) for name in names]
    readable = [path for path in paths if os.access(path, os.R_OK)]
    return max(readable, key=lambda path: (os.stat(path).st_mtime, path), default=None)
