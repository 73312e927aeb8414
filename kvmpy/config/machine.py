"""What machine is wanted: `MachineConfig` and the texts that its numbers are read from."""

from __future__ import annotations

import os
import stat

from kvmpy.errors import ConfigError
from kvmpy.units import GIB, MIB, PAGE_SIZE, TIB, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy.config.cpu import CpuConfig
    from kvmpy.config.drive import DriveConfig

MSR_POLICIES = ("fault", "zero")

CONSOLES = ("serial", "none")

VIRTIO_TRANSPORTS = ("mmio", "pci")

MIN_MEMORY = MIB
# Our book-keeping takes a byte for each page of it.
MAX_MEMORY = TIB

# An xAPIC ID has 8 bits; 255 is the broadcast, and the I/O APIC has one too.
MAX_VCPUS = 254

MAX_PORT = 0xFFFF

# A kernel with all its debugging information is about 1 GiB.
MAX_KERNEL_SIZE = 2 * GIB
# What lies between the interrupt controllers and 4 GiB.
MAX_FIRMWARE_SIZE = 16 * MIB
MAX_NAME_LENGTH = 64
# A command line is bounded by the kernel's own limit, which its loader knows; this one bounds what we look at.
MAX_APPEND_LENGTH = 64 << 10
# Beyond it a timer of the host may overflow; it is 31 years.
MAX_TIMEOUT = 1e9


class MachineConfig:
    """One machine, as asked for.

    `kernel`, `initrd` and `firmware` are paths, or the bytes themselves; a machine without firmware enters its kernel
    at once, one with it starts there and may have no kernel; an `initrd` may also be a list of multiboot modules;
    `append` is added to the kernel's command line; `memory` is in bytes; `console` is one of `CONSOLES`;
    `debug_exit` is the I/O port of an isa-debug-exit device or None; `timeout` is in seconds or None; `report` is the
    path that a JSON report is written to, or None; `name` is the machine's own, or None; `protocol` says how the
    kernel file is loaded, as `kvmpy.boot.recognise` knows and checks it; `cpu` is the processor, or None for the
    host's; `msrs`, one of `MSR_POLICIES`, says what an access to an MSR that KVM does not know gives the guest: a
    fault, or 0; `gdb` is the address at which a stub waits for gdb, as `kvmpy.machine.gdb.address` reads it, or None;
    `script` is the path of a Python file that is run with the machine before it starts, or None; `rng` says whether it
    has a virtio entropy device; `drives` are its disks, in the order in which the guest finds them; `virtio`, one of
    `VIRTIO_TRANSPORTS`, says how the guest reaches its virtio devices; `balloon` says whether it has a virtio balloon.

    Raises a `ConfigError` that names the attribute for a value that no machine can have, or a file that is not
    there.  Files are looked at and not opened: who loads them checks what is in them.
    """

    __slots__ = (
        "append", "balloon", "console", "cpu", "debug_exit", "drives", "firmware", "gdb", "initrd", "kernel", "memory",
        "msrs", "name", "protocol", "report", "rng", "script", "timeout", "vcpus", "verbose", "virtio",
    )  # fmt: skip

    def __init__(
        self,
        kernel: str | bytes | None = None,
        *,
        firmware: str | bytes | None = None,
        initrd: str | bytes | None = None,
        append: str = "",
        memory: int = 256 * MIB,
        vcpus: int = 1,
        console: str = "serial",
        debug_exit: int | None = None,
        timeout: float | None = None,
        report: str | None = None,
        name: str | None = None,
        verbose: bool = False,
        protocol: str = "auto",
        cpu: CpuConfig | None = None,
        msrs: str = "fault",
        gdb: str | None = None,
        script: str | None = None,
        rng: bool = False,
        drives: Iterable[DriveConfig] = (),
        virtio: str = "mmio",
        balloon: bool = False,
    ) -> None:
        self.memory = _check_memory(memory)
        if kernel is None and firmware is None:
            raise ConfigError("kernel", "there is nothing to run; name a kernel or a firmware")
        self.kernel = None if kernel is None else _check_file("kernel", kernel, MAX_KERNEL_SIZE)
        self.firmware = None if firmware is None else _check_file("firmware", firmware, MAX_FIRMWARE_SIZE)
        self.initrd = None if initrd is None else _check_initrd(initrd, memory)
        self.append = _check_append(append)
        self.vcpus = _check_range("vcpus", vcpus, 1, MAX_VCPUS)
        if console not in CONSOLES:
            raise ConfigError("console", f"{console!r} is none of {', '.join(CONSOLES)}")
        self.console = console
        self.debug_exit = None if debug_exit is None else _check_range("debug_exit", debug_exit, 0, MAX_PORT)
        if timeout is not None and not 0 < timeout <= MAX_TIMEOUT:  # Refuses NaN too.
            raise ConfigError("timeout", f"{timeout:g} is not above 0 and up to {MAX_TIMEOUT:g}, in seconds")
        self.timeout = timeout
        self.report = None if report is None else _check_output("report", report)
        self.name = None if name is None else _check_name(name)
        self.verbose = verbose
        self.protocol = protocol
        self.cpu = cpu
        if msrs not in MSR_POLICIES:
            raise ConfigError("msrs", f"{msrs!r} is none of {', '.join(MSR_POLICIES)}")
        self.msrs = msrs
        self.gdb = gdb
        self.script = script
        self.rng = rng
        self.drives = tuple(drives)
        if virtio not in VIRTIO_TRANSPORTS:
            raise ConfigError("virtio", f"{virtio!r} is none of {', '.join(VIRTIO_TRANSPORTS)}")
        self.virtio = virtio
        self.balloon = balloon

    def __repr__(self) -> str:
        return f"MachineConfig({', '.join(f'{key}={getattr(self, key)!r}' for key in self.__slots__)})"


def parse_port(text: str, *, path: str = "port") -> int:
    """The I/O port that `text` names in any base, as `0xf4`, `244` or `0b11110100`; else a `ConfigError` at `path`."""
    try:
        if len(text) > 32:
            raise ValueError
        return _check_range(path, int(text, 0), 0, MAX_PORT)
    except ValueError:
        raise ConfigError(path, f"{_short(text)} is not an I/O port; write it as 0xf4 or 244") from None


def _check_memory(size: int) -> int:
    if size % PAGE_SIZE:
        raise ConfigError("memory", f"{size} bytes is not a multiple of {format_size(PAGE_SIZE)}")
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        limits = f"{format_size(MIN_MEMORY)} to {format_size(MAX_MEMORY)}"
        raise ConfigError("memory", f"{format_size(size)} is outside of what a machine can have, {limits}")
    return size


def _check_range(path: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ConfigError(
            path, f"{value:#x} is not in 0 to {high:#x}" if low == 0 else f"{value} is not {low} to {high}"
        )
    return value


def _check_file(path: str, name: str | bytes, limit: int) -> str | bytes:
    """`name`, where it is a readable file of 1 to `limit` bytes, or so many bytes."""
    if isinstance(name, bytes):
        if not 0 < len(name) <= limit:
            raise ConfigError(path, f"{len(name)} bytes are not 1 to {limit}")
        return name
    try:
        status = os.stat(name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise ConfigError(path, f"{_short(name)}: {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(path, f"{_short(name)} is not a regular file")
    if not os.access(name, os.R_OK):
        raise ConfigError(path, f"{_short(name)} may not be read; change its permissions or your user")
    if status.st_size == 0:
        raise ConfigError(path, f"{_short(name)} is empty")
    if status.st_size > limit:
        what = f"the machine's memory, {format_size(limit)}" if path == "initrd" else format_size(limit)
        raise ConfigError(path, f"{_short(name)} has {status.st_size} bytes, more than {what}")
    return name


def _check_initrd(name: str | bytes, memory: int) -> str | bytes:
    if isinstance(name, str) and ("," in name or " " in name) and not os.path.exists(name):
        return name  # A list of modules, whose loader looks at each.
    return _check_file("initrd", name, memory)


def _check_output(path: str, name: str) -> str:
    """`name`, where a file of that name can be written."""
    if not name or "\0" in name or os.path.isdir(name):
        raise ConfigError(path, f"{_short(name)} is not a file name")
    folder = os.path.dirname(name) or "."
    if not os.path.isdir(folder):
        raise ConfigError(path, f"{_short(folder)} is no folder; make it first")
    if not os.access(name if os.path.exists(name) else folder, os.W_OK):
        raise ConfigError(path, f"{_short(name)} may not be written")
    return name


def _check_append(text: str) -> str:
    if len(text) > MAX_APPEND_LENGTH:
        raise ConfigError("append", f"{len(text)} characters are more than any kernel takes")
    if "\0" in text or "\n" in text:
        raise ConfigError("append", "a kernel's command line is one line and has no NUL")
    return text


def _check_name(name: str) -> str:
    # It becomes part of file names and of cgroup names.
    body = name.replace("-", "").replace("_", "").replace(".", "")
    if not (0 < len(name) <= MAX_NAME_LENGTH and name.isascii() and body.isalnum() and name[0].isalnum()):
        raise ConfigError(
            "name",
            f"{_short(name)} is not up to {MAX_NAME_LENGTH} letters, digits, '-', '_' and '.', a letter or digit first",
        )
    return name


def _short(text: str) -> str:
    """`text` in quotes, its middle left out where it is long."""
    return repr(text if len(text) <= 200 else f"{text[:100]}...{text[-100:]}")
