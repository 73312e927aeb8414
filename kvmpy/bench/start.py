"""`start`: from exec to a guest's first port write, against QEMU's microvm with the same guest of one page.

The guest writes one byte to its serial port and then to a debug exit device.  The byte on a pipe shows the first port
write, the same way for both; the end of the process follows.  QEMU takes the page as the end of a firmware image.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time

from kvmpy.bench.report import Report
from kvmpy.bench.rounds import Samples, alternate
from kvmpy.config.machine import MachineConfig
from kvmpy.errors import HostError, KvmpyError
from kvmpy.machine.builder import build
from kvmpy.machine.timeline import STAGES
from kvmpy.testing.asm import assemble
from kvmpy.units import KIB, MIB, PAGE_SIZE

# Aims of the project.
MOST_OVER_QEMU = 1.0
MOST_IN_PROCESS_MS = 3.0

QEMU = "qemu-system-x86_64"

SERIAL_PORT = 0x3F8
EXIT_PORT = 0xF4
MARK = b"K"
# isa-debug-exit makes a status of the value written: value * 2 + 1.
EXIT_VALUE = 0x15
STATUS = EXIT_VALUE << 1 | 1

MEMORY_MIB = 16
PROTOCOL = "flat16"

_LONGEST_SECONDS = 30.0
_FIRMWARE_SIZE = 64 * KIB
_FROM_RESET_VECTOR_TO_END = 16

_GUEST = """
start:  mov     dx, SERIAL_PORT
        mov     al, MARK
        out     dx, al
        mov     al, EXIT_VALUE
        out     EXIT_PORT, al
halt:   cli
        hlt
        jmp     halt
        times   SIZE - TAIL - ($ - $$) db 0
        jmp     start
        times   SIZE - ($ - $$) db 0
"""


def page() -> bytes:
    """The guest: runs from its first byte wherever it lies, and from the reset vector when it ends at 4 GiB."""
    return assemble(
        _GUEST,
        bits=16,
        SERIAL_PORT=SERIAL_PORT,
        MARK=MARK[0],
        EXIT_VALUE=EXIT_VALUE,
        EXIT_PORT=EXIT_PORT,
        SIZE=PAGE_SIZE,
        TAIL=_FROM_RESET_VECTOR_TO_END,
    )


def kvmpy_command(guest: str, *more: str) -> list[str]:
    """How kvmpy runs `guest`: by its installed command where that stands beside this Python."""
    script = os.path.join(os.path.dirname(sys.executable), "kvmpy")
    command = [script] if os.access(script, os.X_OK) else [sys.executable, "-m", "kvmpy"]
    options = ["--protocol", PROTOCOL, "-m", f"{MEMORY_MIB}M", "--debug-exit", hex(EXIT_PORT)]
    return [*command, "boot", guest, *options, *more]


def qemu_command(firmware: str) -> list[str]:
    """How QEMU runs `firmware`, with nothing in its machine that the guest does not use."""
    found = shutil.which(QEMU)
    if found is None:
        raise KvmpyError(f"{QEMU} is the peer of this benchmark: apt-get install qemu-system-x86")
    machine = "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,auto-kernel-cmdline=off"
    # Without this feature it warns on each start where KVM cannot give it.
    options = ["-M", machine, "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-m", str(MEMORY_MIB)]
    options += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    return [found, *options, "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1", "-bios", firmware]


class Launcher:
    """Runs `command` to its end as often as it is called; each run gives the milliseconds to its first byte.

    `whole` keeps the milliseconds to the end of each run.
    """

    def __init__(self, command: list[str], *, mark: bytes = MARK, status: int = STATUS) -> None:
        self.command = command
        self.whole: list[float] = []
        self._mark = mark
        self._status = status

    def __call__(self) -> float:
        """Runs it; raises `KvmpyError` when it does anything else than what its guest should do."""
        ours, theirs = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 1), (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        start = time.perf_counter()
        try:
            pid = os.posix_spawn(self.command[0], self.command, os.environ, file_actions=actions)
        except OSError as error:
            os.close(ours)
            raise HostError(f"exec {self.command[0]}", error.errno or 0) from error
        finally:
            os.close(theirs)
        output = self._read(ours, pid)
        first = time.perf_counter() - start
        while output[-1:] and (more := self._read(ours, pid)):
            output += more
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.whole.append((time.perf_counter() - start) * 1000)
        os.close(ours)
        if output != self._mark or status != self._status:
            name = os.path.basename(self.command[0])
            raise KvmpyError(
                f"{name} ended with status {status} after {output[:80]!r}; the guest ends with {self._status}"
            )
        return first * 1000

    def _read(self, fd: int, pid: int) -> bytes:
        if not select.select([fd], [], [], _LONGEST_SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
        return os.read(fd, 4096)


def in_process_ms(guest: str) -> float:
    """Milliseconds from the call that builds a machine to its guest's last port write."""
    config = MachineConfig(guest, protocol=PROTOCOL, memory=MEMORY_MIB * MIB, console="none", debug_exit=EXIT_PORT)
    with build(config) as machine:
        machine.run()
        end = machine.timeline.milliseconds()["end"]
    assert end is not None
    return end


def run(rounds: int = 20) -> Report:
    """The report, of `rounds` rounds."""
    report = Report("start")
    with tempfile.TemporaryDirectory(prefix="kvmpy-bench-") as folder:
        guest, firmware = os.path.join(folder, "page"), os.path.join(folder, "firmware")
        timeline = os.path.join(folder, "report")
        for path, content in ((guest, page()), (firmware, page().rjust(_FIRMWARE_SIZE, b"\xff"))):
            with open(path, "wb") as file:
                file.write(content)
        kvmpy = Launcher(kvmpy_command(guest))
        qemu = Launcher(qemu_command(firmware))
        bare = Launcher([sys.executable, "-c", "pass"], mark=b"", status=0)
        found = alternate(
            {"kvmpy": kvmpy, "QEMU": qemu, "Python": bare, "in process": lambda: in_process_ms(guest)},
            rounds,
            warm_up=2,
        )
        stages = _stages(Launcher(kvmpy_command(guest, "--report", timeline)), timeline, rounds)
    report.add("kvmpy, exec to first port write", found["kvmpy"], "ms")
    report.add("QEMU, exec to first port write", found["QEMU"], "ms")
    ratio = report.add("kvmpy over QEMU", found["kvmpy"].ratio(found["QEMU"]))
    whole = Samples(kvmpy.whole[-rounds:]), Samples(qemu.whole[-rounds:])
    report.add("kvmpy, exec to its end", whole[0], "ms")
    report.add("QEMU, exec to its end", whole[1], "ms")
    report.add("kvmpy over QEMU, to the end", whole[0].ratio(whole[1]))
    report.add("bare Python, exec to its end", Samples(bare.whole[-rounds:]), "ms")
    for stage, samples in stages.items():
        report.add(f"kvmpy, from its entry to {stage}", samples, "ms")
    report.add("in a running process, build to exit", found["in process"], "ms")
    report.aim("exec to first port write over QEMU", ratio.median, MOST_OVER_QEMU)
    report.aim("in a running process", found["in process"].median, MOST_IN_PROCESS_MS, "ms")
    return report


def _stages(launcher: Launcher, path: str, rounds: int) -> dict[str, Samples]:
    """The time line that kvmpy reports of itself, of those stages that it reached."""
    taken: dict[str, list[float]] = {stage: [] for stage in STAGES[1:]}
    for _ in range(rounds):
        launcher()
        with open(path, encoding="utf-8") as file:
            timeline = json.load(file)["timeline_ms"]
        for stage, values in taken.items():
            if timeline[stage] is not None:
                values.append(timeline[stage])
    return {stage: Samples(values) for stage, values in taken.items() if values}
