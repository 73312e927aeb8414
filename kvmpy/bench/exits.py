"""`exits`: what a port exit costs that a Python device answers, against the same exits in a bare C loop.

The Python path is the product's own: `VcpuThread`, the port bus, a device.  Python's share is measured twice: as the
difference of the two loops, which has the binding and the loss of a warm cache in it, and alone, with an `enter` that
returns at once in place of KVM_RUN.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import chain, repeat
from struct import Struct
from typing import cast

from kvmpy.bench.report import Report
from kvmpy.bench.rounds import alternate
from kvmpy.bus import mmio_bus, pio_bus
from kvmpy.devices.legacy.serial import Serial
from kvmpy.errors import StateError
from kvmpy.kvm import System, Vcpu
from kvmpy.kvm.exits import KVM_EXIT_INTR, KVM_EXIT_IO
from kvmpy.machine.exits import ExitContext
from kvmpy.machine.outcome import Outcome
from kvmpy.machine.vcpu_thread import VcpuThread
from kvmpy.memory import GuestMemory
from kvmpy.testing.asm import assemble
from kvmpy.testing.fakes import FakeLine
from kvmpy.units import KIB, PAGE_SIZE
from kvmpy.x86.cpustate import enter_real
from kvmpy.x86.layout import IDENTITY_MAP, TSS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.bus import Device

# Aims of the project, for hosts on which an exit takes 5 us and more.
MOST_OVER_C = 1.15
MOST_PYTHON_NS = 1500.0

BEGIN_PORT, WORK_PORT, END_PORT = 0x10, 0x20, 0x30

# So many writes in a row that the loop around them counts for nothing, even where each instruction is emulated; and a
# round of few milliseconds, so that most rounds are spared by what else the host does.
_BATCH = 500
_BATCHES = 1
EXITS = _BATCH * _BATCHES
ALONE_EXITS = 5000

_IO_OFFSET = 32
_IO = Struct("<BBHIQ")

_GUEST = """
        out     BEGIN_PORT, al
again:  times   BATCH out WORK_PORT, al
        dec     ecx
        jnz     again
        out     END_PORT, al
        hlt
"""


class Counter:
    """The least that a device can do: it counts."""

    def __init__(self) -> None:
        self.count = 0

    def read(self, offset: int, data: memoryview) -> None:
        """Reads as zero."""
        data[:] = bytes(len(data))

    def write(self, offset: int, data: memoryview) -> None:
        """Counts."""
        self.count += 1


class Trigger:
    """Calls `on_write` at each write."""

    def __init__(self, on_write: Callable[[], object]) -> None:
        self._on_write = on_write

    def read(self, offset: int, data: memoryview) -> None:
        """Reads as zero."""
        data[:] = bytes(len(data))

    def write(self, offset: int, data: memoryview) -> None:
        """Calls."""
        self._on_write()


class Runner:
    """One `VcpuThread` over `vcpu` with `devices` at their ports; `run` waits for its end."""

    def __init__(self, vcpu: Vcpu, memory: GuestMemory, devices: Mapping[int, Device]) -> None:
        bus = pio_bus()
        for port, device in devices.items():
            bus.add(port, 8, device)
        self._failures: list[BaseException] = []
        self.thread = VcpuThread(vcpu, bus, mmio_bus(), ExitContext(memory), self._on_end, self._failures.append)

    def _on_end(self, outcome: Outcome) -> None:
        self._failures.append(StateError(f"the benchmark's guest ended by itself: {outcome.reason}"))

    def run(self) -> None:
        """Lets the vCPU run until it is stopped; raises what went wrong."""
        self.thread.start()
        self.thread.join()
        if self._failures:
            raise self._failures[0]


class Guest:
    """A VM whose guest writes to BEGIN_PORT, EXITS times to WORK_PORT, and to END_PORT.  A context manager."""

    def __init__(self) -> None:
        code = assemble(_GUEST, bits=16, BEGIN_PORT=BEGIN_PORT, WORK_PORT=WORK_PORT, END_PORT=END_PORT, BATCH=_BATCH)
        with ExitStack() as stack:
            self.memory = stack.enter_context(GuestMemory(64 * KIB))
            self.memory.write(0, code)
            system = stack.enter_context(System())
            vm = stack.enter_context(system.create_vm())
            vm.set_memory_region(0, 0, self.memory.regions[0].buffer)
            vm.set_identity_map_address(IDENTITY_MAP)
            vm.set_tss_address(TSS)
            self.vcpu = stack.enter_context(vm.create_vcpu(0))
            sregs = self.vcpu.sregs()
            enter_real(sregs, 0)
            self.vcpu.set_sregs(sregs)
            self._stack = stack.pop_all()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _rewind(self) -> None:
        regs = self.vcpu.regs()
        regs.rip, regs.rcx, regs.rflags = 0, _BATCHES, 2
        self.vcpu.set_regs(regs)

    def c_ns(self) -> float:
        """Nanoseconds of an exit in the loop in C, in a thread of its own as the other has."""
        self._rewind()
        stamps: list[int] = []

        def run() -> None:
            if self.vcpu.port_write_loop(1) == 1:
                stamps.append(time.perf_counter_ns())
            if self.vcpu.port_write_loop(EXITS + 1) == EXITS + 1:
                stamps.append(time.perf_counter_ns())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return _per_exit(stamps)

    def python_ns(self, device: Device) -> float:
        """Nanoseconds of an exit that kvmpy takes to `device`."""
        self._rewind()
        stamps: list[int] = []

        def stamp() -> None:
            stamps.append(time.perf_counter_ns())

        def end() -> None:
            stamp()
            runner.thread.stop()

        devices = {BEGIN_PORT: Trigger(stamp), WORK_PORT: device, END_PORT: Trigger(end)}
        runner = Runner(self.vcpu, self.memory, devices)
        runner.run()
        return _per_exit(stamps)

    def alone_ns(self, device: Device) -> float:
        """Nanoseconds of Python in an exit to `device`, without KVM: what it takes to call `enter` is left out."""
        vcpu = InstantVcpu(ALONE_EXITS)
        runner = Runner(cast(Vcpu, vcpu), self.memory, {WORK_PORT: device})
        runner.thread.stop()  # It looks at that when the exits are over.
        start = time.perf_counter_ns()
        runner.run()
        with_python = time.perf_counter_ns() - start
        enter = InstantVcpu(ALONE_EXITS).enter
        start = time.perf_counter_ns()
        deque(iter(enter, KVM_EXIT_INTR), maxlen=0)
        return (with_python - (time.perf_counter_ns() - start)) / ALONE_EXITS


class InstantVcpu:
    """In place of a vCPU: KVM_RUN returns at once, `exits` times for a byte written to WORK_PORT, then as if kicked."""

    id = 0

    def __init__(self, exits: int) -> None:
        self.enter = chain(repeat(KVM_EXIT_IO, exits), repeat(KVM_EXIT_INTR)).__next__
        self.memory = memoryview(bytearray(2 * PAGE_SIZE))
        # struct kvm_run, `io`: direction, size, port, count, where the data is.
        _IO.pack_into(self.memory, _IO_OFFSET, 1, 1, WORK_PORT, 1, PAGE_SIZE)
        self.immediate_exit = False

    def kick(self) -> None:
        """There is no KVM_RUN to end."""

    def adopt_thread(self, tid: int) -> None:
        """There is nobody to kick."""


def _per_exit(stamps: list[int]) -> float:
    if len(stamps) != 2:
        raise StateError("the benchmark's guest did not come to its end")
    return (stamps[1] - stamps[0]) / (EXITS + 1)


def run(rounds: int = 200) -> Report:
    """The report, of `rounds` rounds."""
    report = Report("exits")
    with Guest() as guest:
        counter = Counter()
        serial = Serial(FakeLine(), lambda data: None)
        found = alternate(
            {
                "C": guest.c_ns,
                "Python": lambda: guest.python_ns(counter),
                "serial": lambda: guest.python_ns(serial),
                "Python alone": lambda: guest.alone_ns(counter),
                "serial alone": lambda: guest.alone_ns(serial),
            },
            rounds,
            warm_up=5,
        )
    in_c, in_python = found["C"], found["Python"]
    report.add("port exit, C loop", in_c, "ns")
    report.add("port exit, Python device that counts", in_python, "ns")
    report.add("port exit, serial port", found["serial"], "ns")
    ratio = report.add("Python device over C", in_python.ratio(in_c))
    difference = report.add("Python device minus C", in_python.difference(in_c), "ns")
    alone = report.add("Python alone, device that counts", found["Python alone"], "ns")
    report.add("Python alone, serial port", found["serial alone"], "ns")
    report.aim("a port exit over C", ratio.median, MOST_OVER_C)
    report.aim("Python in a port exit, as difference", difference.median, MOST_PYTHON_NS, "ns")
    report.aim("Python in a port exit, alone", alone.median, MOST_PYTHON_NS, "ns")
    return report
