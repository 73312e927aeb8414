"""The default initramfs: a static busybox, and an init that mounts, greets, gives a shell and ends the machine.

`/init` is a small program made by `static_init`, not a script: a fork and exec takes up to half a second where the
kernel's instructions are emulated, and this init makes one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping

from kvmpy.errors import ImageError
from kvmpy.images import cpio, static_init
from kvmpy.units import MIB

BUSYBOX_VARIABLE = "KVMPY_BUSYBOX"
BUSYBOX_PATHS = ("/bin/busybox", "/usr/bin/busybox")
BUSYBOX_ADVICE = "`apt-get install busybox-static` gives one"
_BUSYBOX_LIMIT = 64 * MIB

TIOCGDEV = 0x80045432  # the device number of the terminal behind /dev/console
O_RDWR = 2
O_CLOEXEC = 0o2000000
EEXIST = 17
S_IFCHR = 0o020000

ACPI_FOLDER = "/sys/firmware/acpi"

GREETING = "kvmpy: a shell on the console; `exit` ends the machine\n"

# A link each costs the guest's kernel thousands of instructions, so the list is what a shell user reaches for.
_APPLETS = """
    [ ash awk base64 basename cat chgrp chmod chown chroot clear cmp cp cut date dd df diff dirname dmesg du echo env
    expr false find free grep gunzip gzip halt head hexdump hostname id ifconfig insmod ip kill killall less ln ls lsmod
    md5sum mkdir mke2fs mkfifo mknod mktemp modprobe more mount mv nc netstat nproc od pidof ping poweroff printf ps pwd
    readlink realpath reboot rm rmdir rmmod route sed seq setsid sh sha256sum sleep sort stat strings stty sync sysctl
    tail tar tee test time timeout top touch tr true truncate tty udhcpc umount uname uniq uptime usleep vi wc wget
    which xargs xxd yes zcat
"""
APPLETS = tuple(_APPLETS.split())

PT_INTERP = 3


def find_busybox(path: str | None = None) -> str:
    """The static busybox to use: `path`, else `$KVMPY_BUSYBOX`, else the host's; `ImageError` says what to install."""
    asked = path or os.environ.get(BUSYBOX_VARIABLE)
    for candidate in (asked,) if asked else BUSYBOX_PATHS:
        if os.path.exists(candidate):
            return candidate
    where = asked or " or ".join(BUSYBOX_PATHS)
    raise ImageError(f"the default initramfs needs a static busybox, and there is none at {where}; {BUSYBOX_ADVICE}")


def read_busybox(path: str) -> bytes:
    """The busybox at `path`, checked to be a static x86-64 program of at most 64 MiB."""
    try:
        with open(path, "rb") as program:
            data = program.read(_BUSYBOX_LIMIT + 1)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    if len(data) > _BUSYBOX_LIMIT:
        raise ImageError(f"{path}: larger than 64 MiB, so hardly a busybox")
    if data[:5] != b"\x7fELF\x02" or data[18:20] != b"\x3e\x00" or len(data) < 64:
        raise ImageError(f"{path}: not an x86-64 program; {BUSYBOX_ADVICE}")
    table, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    for index in range(count):
        at = table + index * size
        if at + 4 > len(data):
            raise ImageError(f"{path}: its program headers lie outside of the file")
        if struct.unpack_from("<I", data, at)[0] == PT_INTERP:
            raise ImageError(f"{path}: a dynamically linked busybox cannot run alone; {BUSYBOX_ADVICE}")
    return data


def shell_init(*, greeting: str = GREETING, modules: Iterable[str] = (), shell: str = "/bin/sh") -> bytes:
    """An init that loads `modules` (paths, in that order), mounts /proc, /sys and /dev, prints `greeting`, runs
    `shell` with job control on the console until it ends, and restarts the machine.

    `reboot` in the shell does so too; `poweroff` and `halt` switch the machine off where ACPI can, for Linux without
    would halt, and its machine go on for ever.
    """
    program = static_init.Program()
    program.load_environment("r15")
    # What busybox's commands tell an init: reboot, halt, poweroff.
    for signal, label in ((static_init.SIGTERM, "end"), (static_init.SIGUSR1, "off"), (static_init.SIGUSR2, "off")):
        program.catch(signal, label)
    for module in modules:
        _load_module(program, module)
    empty = program.text("")
    for kind, folder in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        name = program.text(kind)
        program.call(static_init.MOUNT, name, program.text(folder), name, 0, empty)
    pts = program.text("/dev/pts")
    devpts = program.text("devpts")
    program.call(static_init.MKDIR, pts, 0o755)
    program.call(static_init.MOUNT, devpts, pts, devpts, 0, empty)
    program.write(greeting.encode())
    program.call(static_init.FORK)
    program.test("rax")
    program.jump("shell", "zero")
    program.jump("end", "negative")
    program.move("r12", "rax")
    program.label("wait")
    program.call(static_init.WAIT4, -1, 0, 0, 0)
    program.test("rax")
    program.jump("end", "negative")
    program.subtract("rax", "r12")
    program.jump("wait", "nonzero")
    program.jump("end")
    program.label("off")
    program.call(static_init.OPEN, program.text(ACPI_FOLDER), O_CLOEXEC)
    program.test("rax")
    program.jump("end", "negative")
    program.reboot(static_init.LINUX_REBOOT_CMD_POWER_OFF)
    program.label("end")
    program.reboot()
    program.call(static_init.EXIT, 1)
    program.label("shell")
    _take_terminal(program)
    path = program.text(shell)
    argv = program.pointers(program.text(os.path.basename(shell)))
    program.call(static_init.EXECVE, path, argv, "r15")
    program.write(f"kvmpy: {shell} cannot be run\n".encode())
    program.call(static_init.EXIT, 127)
    return program.elf()


def _load_module(program: static_init.Program, path: str) -> None:
    """Loads one module; says so on the console when that fails and the module was not there before."""
    done = f"loaded {path}"
    program.call(static_init.OPEN, program.text(path), O_CLOEXEC)
    program.move("r12", "rax")
    program.call(static_init.FINIT_MODULE, "r12", program.text(""), 0)
    program.test("rax")
    program.jump(done, "zero")
    program.move("r13", EEXIST)
    program.add("rax", "r13")
    program.jump(done, "zero")
    program.write(f"kvmpy: {path} could not be loaded\n".encode())
    program.label(done)
    program.call(static_init.CLOSE, "r12")


def _take_terminal(program: static_init.Program) -> None:
    """Starts a session on the terminal behind /dev/console, which cannot be a controlling terminal itself."""
    number = program.data(bytes(8))
    node = program.text("/dev/.console")
    program.call(static_init.SETSID)
    program.call(static_init.IOCTL, 0, TIOCGDEV, number)
    program.test("rax")
    program.jump("no terminal", "nonzero")
    program.load32("r12", number)
    program.call(static_init.MKNOD, node, S_IFCHR | 0o600, "r12")
    program.call(static_init.OPEN, node, O_RDWR)
    program.test("rax")
    program.jump("no terminal", "negative")
    program.move("r12", "rax")
    for descriptor in (0, 1, 2):
        program.call(static_init.DUP2, "r12", descriptor)
    program.call(static_init.CLOSE, "r12")
    program.label("no terminal")


def base_entries() -> list[cpio.Entry]:
    """What every initramfs needs: the mount points, and /dev/console, which the kernel opens for init."""
    folders = [cpio.directory(name) for name in ("bin", "dev", "etc", "mnt", "proc", "root", "sys", "tmp")]
    return [*folders, cpio.char_device("dev/console", 5, 1), cpio.char_device("dev/null", 1, 3, 0o666)]


def default_initramfs(
    busybox: str | None = None,
    *,
    greeting: str = GREETING,
    applets: Iterable[str] = APPLETS,
    modules: Mapping[str, bytes] | None = None,
    extra: Iterable[cpio.Entry] = (),
    compress: bool = False,
) -> bytes:
    """A cpio archive with busybox, its `applets` as links and `shell_init` as /init.

    `modules` are kernel modules to load, name to content, in load order (`kvmpy.images.modules` gives them); `extra`
    is added to the files.  Raises `ImageError` without a static busybox.
    """
    content = read_busybox(find_busybox(busybox))
    modules = modules or {}
    entries = base_entries()
    entries.append(cpio.file("bin/busybox", content, 0o755))
    entries += [cpio.symlink(f"bin/{applet}", "busybox") for applet in applets]
    entries += [cpio.file(f"lib/modules/{name}", data) for name, data in modules.items()]
    init = shell_init(greeting=greeting, modules=[f"/lib/modules/{name}" for name in modules])
    entries.append(cpio.file("init", init, 0o755))
    return cpio.write([*entries, *extra], compress=compress)


def program_initramfs(init: bytes, extra: Iterable[cpio.Entry] = ()) -> bytes:
    """The smallest cpio archive that runs `init`, a static program: /dev/console, /init and `extra`."""
    return cpio.write([cpio.char_device("dev/console", 5, 1), cpio.file("init", init, 0o755), *extra])
