"""The host profile's place on disk: one small text file, `host-profile`, in the user's cache folder.

It is read on the way to every guest's first instruction, so it is lines of `key=value` and costs microseconds.  A file
of another host, another boot, another user, or that is not what `store` writes, counts as none.
"""

from __future__ import annotations

import os
from stat import S_ISREG

from kvmpy.host.cache import cache_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Figures = tuple[str, float, float, float]

_NAME = "host-profile"
_FORMAT = "kvmpy-host-profile=1"
_FIGURES = ("ring0_ns", "ring3_ns", "pio_exit_ns")
# Ours is some 300 bytes long.
_LARGEST = 4096
# No cost is a second.
_LARGEST_FIGURE = 1e9

_CPUINFO = "/proc/cpuinfo"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_MODULES = "/sys/module"


def host_key() -> str:
    """What the profile depends on, as lines of text: this boot of this kernel, its KVM modules, the processor."""
    try:
        modules = sorted(name for name in os.listdir(_MODULES) if name.startswith("kvm_"))
    except OSError:
        modules = []
    boot = _read(_BOOT_ID, 64).decode("ascii", "replace").strip()
    kernel = os.uname().release
    return f"boot_id={boot}\nkernel={kernel}\nmodules={','.join(modules)}\ncpu={_cpuinfo('model name')}\n"


def is_virtual() -> bool:
    """Whether this host is a virtual machine: its CPUID has the hypervisor bit."""
    return "hypervisor" in _cpuinfo("flags").split()


def load(key: str, kinds: Sequence[str]) -> Figures | None:
    """The kind and the three costs that were stored under `key`, or None."""
    lines = _read(os.path.join(cache_folder(), _NAME), _LARGEST, own=True).decode("utf-8", "replace").split("\n")
    head = f"{_FORMAT}\n{key}".split("\n")[:-1]
    if lines[: len(head)] != head:
        return None
    values = dict(line.partition("=")[::2] for line in lines[len(head) :])
    kind = values.get("kind", "")
    try:
        ring0, ring3, pio_exit = (float(values[name]) for name in _FIGURES)
    except (KeyError, ValueError):
        return None
    # A comparison with a NaN is false.
    if kind not in kinds or not all(0 < cost < _LARGEST_FIGURE for cost in (ring0, ring3, pio_exit)):
        return None
    return kind, ring0, ring3, pio_exit


def store(key: str, figures: Figures) -> None:
    """Keeps `figures` under `key`, all of the file or nothing; where it cannot be written, nothing."""
    kind, *costs = figures
    rows = "".join(f"{name}={cost!r}\n" for name, cost in zip(_FIGURES, costs, strict=True))
    folder = cache_folder()
    temporary = os.path.join(folder, f".{_NAME}.{os.urandom(8).hex()}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        with open(fd, "wb") as file:
            file.write(f"{_FORMAT}\n{key}kind={kind}\n{rows}".encode())
        os.rename(temporary, os.path.join(folder, _NAME))
    except OSError:
        os.unlink(temporary)


def _cpuinfo(field: str) -> str:
    """What the first processor's `field` says in /proc/cpuinfo."""
    for line in _read(_CPUINFO, _LARGEST).decode("ascii", "replace").split("\n"):
        name, _, value = line.partition(":")
        if name.rstrip() == field:
            return value.strip()
    return ""


def _read(path: str, limit: int, *, own: bool = False) -> bytes:
    """Up to `limit` bytes of a file, or none; with `own`, only of a regular file that belongs to this user."""
    try:
        # A pipe in the file's place must not hang us.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if own and not (S_ISREG(status.st_mode) and status.st_uid == os.geteuid()):
            return b""
        return os.read(fd, limit)
    except OSError:
        return b""
    finally:
        os.close(fd)
