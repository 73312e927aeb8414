"""Which kernel and initrd a command takes where it was not told."""

from __future__ import annotations

import os

from kvmpy.cli.say import YELLOW, say
from kvmpy.errors import HostError, KvmpyError

# These are `kvmpy.images.initramfs`'s own, which is only imported where an initramfs is to be made.
_VARIABLE = "KVMPY_BUSYBOX"
_BUSYBOXES = ("/bin/busybox", "/usr/bin/busybox")
_SOURCES = ("initramfs.py", "static_init.py", "cpio.py")


def choose(kernel: str | None, initrd: str | None, *, full: bool = False) -> tuple[str, str | None]:
    """`kernel` or the best one that is here, and `initrd` or, for a kernel that nobody named or ours, a shell's.

    `full` asks for a kernel with SMP and PCI, and says so where there is none of ours.  Raises `KvmpyError` with what
    to do where there is no kernel, or no busybox for the shell.
    """
    from kvmpy.images.cache import NO_KERNEL, find_default_kernel, kernels_folder

    named = kernel
    if kernel is None:
        kernel = find_default_kernel(full=full)
        if kernel is None:
            raise KvmpyError(NO_KERNEL)
        if full and kernel == os.path.join(kernels_folder(), "base", "vmlinux"):
            say("the base kernel has neither SMP nor PCI; `kvmpy kernel build full` builds one with both", YELLOW)
    if initrd is None and (named is None or _lies_in(kernel, kernels_folder())):
        initrd = default_initrd(kernel)
    return kernel, initrd


def default_initrd(kernel: str) -> str:
    """The path of an initramfs that gives a shell, with the modules that `kernel` needs for our devices.

    It is made where the cache has none for this busybox and these modules.
    """
    from kvmpy.host.cache import cache_folder

    folder = os.path.join(cache_folder(), "initramfs")
    modules = os.path.join(os.path.dirname(os.path.realpath(kernel)), "lib/modules")
    path = os.path.join(folder, f"shell-{_state(modules)}.cpio")
    if os.path.exists(path):
        return path
    from kvmpy.images.initramfs import default_initramfs

    archive = default_initramfs(modules=_modules(kernel) if os.path.isdir(modules) else None)
    draft = f"{path}.{os.getpid()}"
    try:
        os.makedirs(folder, exist_ok=True)
        with open(draft, "wb") as file:
            file.write(archive)
        os.rename(draft, path)
    except OSError as error:
        raise HostError(f"write {path}", error.errno or 0, "KVMPY_CACHE names another folder for it") from None
    finally:
        if os.path.exists(draft):
            os.unlink(draft)
    return path


def _modules(kernel: str) -> dict[str, bytes]:
    from kvmpy.images.modules import for_kernel

    return for_kernel(kernel)


def _state(modules: str) -> str:
    """A word that changes when the busybox does, or the folder `modules`, or the code that makes an initramfs."""
    from zlib import crc32

    import kvmpy.images

    folder = os.path.dirname(kvmpy.images.__file__ or "")
    asked = os.environ.get(_VARIABLE)
    words = []
    for path in (modules, *((asked,) if asked else _BUSYBOXES), *(os.path.join(folder, name) for name in _SOURCES)):
        if os.path.exists(path):
            status = os.stat(path)
            words.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return f"{crc32(os.fsencode(' '.join(words))):08x}"


def _lies_in(path: str, folder: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)
