"""Builds a guest kernel from the distribution's source package, unpatched, with one of kvmpy's configurations."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from kvmpy.errors import HostError, ImageError, KvmpyError
from kvmpy.images import debian, kernels
from kvmpy.images.kernels import Kernel, Progress

PACKAGES = (kernels.SOURCE_PACKAGE, "make", "gcc", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "xz-utils")
SOURCE = f"/usr/src/{kernels.SOURCE_PACKAGE}.tar.xz"

# Most of the tree is compiled by no configuration of ours, and a file costs time twice: written and removed.
# Kconfig files and Makefiles stay, since others include them.
_CODE_LEFT_OUT = """
    arch/alpha arch/arc arch/arm arch/arm64 arch/csky arch/hexagon arch/ia64 arch/loongarch arch/m68k arch/microblaze
    arch/mips arch/nios2 arch/openrisc arch/parisc arch/powerpc arch/riscv arch/s390 arch/sh arch/sparc arch/um
    arch/xtensa
    drivers/ata drivers/comedi drivers/crypto drivers/gpu drivers/hwmon drivers/iio drivers/infiniband drivers/md
    drivers/media drivers/mfd drivers/misc/habanalabs drivers/mmc drivers/mtd drivers/net/dsa drivers/net/ethernet
    drivers/net/wireless drivers/phy drivers/pinctrl drivers/platform drivers/regulator drivers/s390 drivers/scsi
    drivers/soc drivers/staging drivers/usb drivers/video drivers/watchdog
    fs/btrfs fs/ceph fs/f2fs fs/gfs2 fs/nfs fs/nfsd fs/ntfs3 fs/ocfs2 fs/smb fs/ubifs fs/xfs
    net/bluetooth net/mac80211 net/netfilter net/wireless samples sound
"""
_FOLDERS_LEFT_OUT = "Documentation/* arch/*/boot/dts tools/bpf tools/perf tools/power tools/testing"
_LEFT_OUT = (
    *(f"{folder}/*.[chS]" for folder in _CODE_LEFT_OUT.split()),
    *(f"{folder}/*" for folder in _FOLDERS_LEFT_OUT.split()),
)

# How many files a build makes, for the progress bar alone.
_STEPS = {"base": 805, "full": 1345}
_TOLD = 12


def build(flavour: str, progress: Progress = kernels.plain_progress, *, force: bool = False) -> Kernel:
    """The kernel of `flavour`, built if the cache does not have it or `force` is set; takes minutes then.

    Missing packages are installed where this process may do that.  Raises `ImageError` when the source does not know
    an option that the configuration asks for or does not compile, and `KvmpyError` with the apt command otherwise.
    """
    kernels.fragment(flavour)
    found = None if force else kernels.find(flavour)
    if found:
        return found
    with kernels.locked(flavour, lambda: progress(f"waiting for another build of {flavour}", 0, 0)):
        found = None if force else kernels.find(flavour)
        if found:
            return found
        debian.need(PACKAGES, "building a kernel", lambda: progress("installing the packages that a build needs", 0, 0))
        with _ending_in_order(), kernels.workspace(flavour) as work:
            return _build(flavour, work, progress)


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end this process as an exception, so that neither files nor compilers stay behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _build(flavour: str, work: str, progress: Progress) -> Kernel:
    started = time.monotonic()
    version = kernels.source_version()
    progress(f"unpacking {kernels.SOURCE_PACKAGE} {version}", 0, 0)
    exclude = [f"--exclude={kernels.SOURCE_PACKAGE}/{pattern}" for pattern in _LEFT_OUT]
    _run(["tar", "-xf", SOURCE, "-C", work, *exclude])
    tree = os.path.join(work, kernels.SOURCE_PACKAGE)
    progress(f"configuring {flavour}", 0, 0)
    _configure(tree, kernels.fragment(flavour))
    step = f"compiling {flavour}"
    progress(step, 0, _STEPS[flavour])
    count = 0

    def line_seen(line: str) -> None:
        nonlocal count
        if line.startswith(("  CC ", "  AS ")):
            count += 1
            progress(step, count, max(count, _STEPS[flavour]))

    jobs = len(os.sched_getaffinity(0)) + 1
    _make(tree, f"-j{jobs}", f"KCFLAGS={kernels.COMPILER_FLAGS}", "vmlinux", "bzImage", each=line_seen)
    release = _make(tree, "-s", "kernelrelease")[-1].strip()
    result = os.path.join(work, "result")
    os.mkdir(result)
    _run(["strip", "--strip-all", "-o", os.path.join(result, "vmlinux"), os.path.join(tree, "vmlinux")])
    for source, name in (("arch/x86/boot/bzImage", "bzImage"), (".config", "config"), ("System.map", "System.map")):
        shutil.copyfile(os.path.join(tree, source), os.path.join(result, name))
    seconds = time.monotonic() - started
    return kernels.install(
        result,
        kernels.key(flavour, version),
        flavour=flavour,
        release=release,
        source=version,
        image="vmlinux",
        seconds=seconds,
    )


def _configure(tree: str, fragment: str) -> None:
    """Makes `.config`: what the fragment says, everything else off; `ImageError` lists what could not be had."""
    seed = os.path.join(tree, "kvmpy.config")
    # `allnoconfig` takes the first word on an option, a person the last.
    with open(seed, "w", encoding="utf-8") as text:
        text.writelines(f"{name}={value}\n" for name, value in kernels.options(fragment).items())
    _make(tree, "-s", "allnoconfig", f"KCONFIG_ALLCONFIG={seed}")
    with open(os.path.join(tree, ".config"), encoding="utf-8") as text:
        missing = kernels.unmet(fragment, text.read())
    if missing:
        raise ImageError(f"{kernels.SOURCE_PACKAGE} does not give the options asked for: {', '.join(missing)}")


def _make(tree: str, *words: str, each: Callable[[str], None] | None = None) -> list[str]:
    return _run(["make", "-C", tree, "--no-print-directory", "ARCH=x86_64", *words], each=each)


def _environment() -> Mapping[str, str]:
    """What a build may know of its surroundings: nothing that changes the result."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    fixed = {"KBUILD_BUILD_USER": "kvmpy", "KBUILD_BUILD_HOST": "kvmpy", "KBUILD_BUILD_TIMESTAMP": "1970-01-01"}
    return {**kept, **fixed, "LC_ALL": "C"}


def _run(command: list[str], *, each: Callable[[str], None] | None = None) -> list[str]:
    """Runs `command` to its end and returns its last lines; whatever ends us ends all of its processes too."""
    last: deque[str] = deque(maxlen=_TOLD)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(command[0], error.errno or 0, f"building needs {command[0]}") from error
    assert process.stdout is not None
    try:
        for line in process.stdout:
            last.append(line.rstrip("\n"))
            if each:
                each(line)
        status = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        process.stdout.close()
    if status:
        raise KvmpyError(f"`{' '.join(command[:5])} ...` ended with status {status}: {' | '.join(last)}")
    return list(last)


def main(words: list[str] | None = None) -> int:
    """`python3 -m kvmpy.images.kernel_build [base|full]`: builds a kernel and prints the path of its vmlinux."""
    words = sys.argv[1:] if words is None else words
    if len(words) > 1 or set(words) & {"-h", "--help"}:
        print("usage: build-guest-kernel [base|full]", file=sys.stderr)
        return 0 if set(words) & {"-h", "--help"} else 2
    try:
        kernel = build(words[0] if words else "base", kernels.plain_progress)
    except KvmpyError as error:
        print(f"kvmpy: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130
    print(kernel.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
