"""`accesses`: what a guest's write to a port or to memory-mapped I/O costs, by who answers it; and two vCPUs at once.

Each sample is a whole machine, built, run to its end and closed; the guest's own writes to two ports frame what is
timed.  All are held against the same port writes in a bare C loop, in the same round.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from kvmpy.bench.exits import Counter, Trigger
from kvmpy.bench.report import Report
from kvmpy.bench.rounds import alternate
from kvmpy.config.machine import MachineConfig
from kvmpy.errors import StateError
from kvmpy.machine.builder import build
from kvmpy.machine.machine import Machine
from kvmpy.machine.outcome import SHUTDOWN
from kvmpy.machine.script.events import Access
from kvmpy.machine.script.trace import Trace
from kvmpy.testing.asm import Code, assemble
from kvmpy.units import MIB

BEGIN_PORT, WORK_PORT, END_PORT = 0x10, 0x20, 0x30
WORK_ADDRESS = 0xD0000000
WIDTH = 4

# So many that the frame around them counts for little, and so few that most rounds are spared by what else the host
# does; some before, so that nobody is timed while he learns where things are.
ACCESSES = 500
WARM_UP = 20

_LONGEST_SECONDS = 60.0

_GUEST = """
        mov     edx, WORK_ADDRESS
        times   WARM_UP {access}
        out     BEGIN_PORT, al
        times   ACCESSES {access}
        out     END_PORT, al
        hlt
"""


def guest(access: str) -> Code:
    """A flat 32-bit guest that repeats the instruction `access`."""
    return assemble(
        _GUEST.format(access=access),
        bits=32,
        origin=MIB,
        BEGIN_PORT=BEGIN_PORT,
        END_PORT=END_PORT,
        WORK_ADDRESS=WORK_ADDRESS,
        WARM_UP=WARM_UP,
        ACCESSES=ACCESSES,
    )


PORT_WRITES = guest(f"out {WORK_PORT}, eax")
MMIO_WRITES = guest("mov [edx], eax")


class Nobody:
    """One way in which accesses are answered: by nobody.  The others derive from it.

    `attach` comes before the machine starts, `settle` when the guest has done its last access, within the time that
    is taken; `seen` is then how many accesses went this way.
    """

    def __init__(self, *, mmio: bool = False) -> None:
        self.mmio = mmio
        self.where = range(WORK_ADDRESS, WORK_ADDRESS + WIDTH) if mmio else range(WORK_PORT, WORK_PORT + WIDTH)
        self.seen = 0

    def attach(self, machine: Machine) -> None:
        """Puts whoever answers into the machine."""
        self._machine = machine

    def settle(self) -> None:
        """Brings in what was put off."""
        stats = [vcpu.stats for vcpu in self._machine.vcpus]
        self.seen = sum((each.mmio if self.mmio else each.ports).get(self.where.start, 0) for each in stats)


class PythonDevice(Nobody):
    """A device that counts."""

    def attach(self, machine: Machine) -> None:
        """Puts it on its bus."""
        self._counter = Counter()
        (machine.mmio if self.mmio else machine.pio).add(self.where.start, WIDTH, self._counter)

    def settle(self) -> None:
        """Takes its count."""
        self.seen = self._counter.count


class Hook(Nobody):
    """A function that counts, asked in the place of a device."""

    def attach(self, machine: Machine) -> None:
        """Hooks it."""
        (machine.on_mmio if self.mmio else machine.on_pio)(self.where, self._on_access)

    def settle(self) -> None:
        """It counts as it goes."""

    def _on_access(self, _access: Access) -> None:
        self.seen += 1


class Traced(Nobody):
    """A trace where nobody else is: KVM keeps the writes, where it can (`is_coalesced`), until they are taken."""

    def attach(self, machine: Machine) -> None:
        """Begins the trace."""
        self._trace: Trace = machine.trace(self.where, mmio=self.mmio)
        self.is_coalesced = self._trace.is_coalesced

    def settle(self) -> None:
        """Takes its records."""
        self.seen = len(self._trace.take())


class TracedDevice(PythonDevice):
    """A trace of a device, which is to see each write at once."""

    def attach(self, machine: Machine) -> None:
        """Puts the device in, and begins the trace."""
        super().attach(machine)
        self._trace = machine.trace(self.where, mmio=self.mmio)

    def settle(self) -> None:
        """Takes the records."""
        self.seen = len(self._trace.take())


class Eventfd(Nobody):
    """An eventfd that KVM signals, without an exit to user space."""

    def attach(self, machine: Machine) -> None:
        """Has KVM signal it at each write of `WIDTH` bytes."""
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        machine.stack.callback(os.close, self._fd)
        machine.vm.ioeventfd(self._fd, self.where.start, WIDTH, pio=not self.mmio)

    def settle(self) -> None:
        """Reads it."""
        self.seen = os.eventfd_read(self._fd)


class Stamps:
    """The time from the moment when all of `vcpus` stand ready until the last is at its end and `settle` is done."""

    def __init__(self, vcpus: int, settle: Callable[[], object] = lambda: None) -> None:
        self._accesses = (ACCESSES + 1) * vcpus  # The write that ends it is timed too.
        self._settle = settle
        self._stamps: list[int] = []
        # The last to come stamps.  None goes on before: the first guest that halts ends its machine.
        self._meeting = threading.Barrier(vcpus, self._stamp, _LONGEST_SECONDS)

    def meet(self) -> None:
        """One is about to begin, or at its end."""
        self._meeting.wait()

    def _stamp(self) -> None:
        if self._stamps:
            self._settle()
        self._stamps.append(time.perf_counter_ns())

    def per_access(self) -> float:
        """Nanoseconds of an access; `StateError` where it did not come to that."""
        if len(self._stamps) != 2:
            raise StateError("the benchmark's guest did not come to its end")
        return (self._stamps[1] - self._stamps[0]) / self._accesses


def _machine(code: Code, vcpus: int) -> Machine:
    config = MachineConfig(code, protocol="flat32", memory=2 * MIB, vcpus=vcpus, console="none")
    machine = build(config)
    for thread in machine.vcpus[1:]:
        machine.entry.apply(thread.vcpu)  # No guest wakes them; they begin as the first does.
    return machine


def access_ns(way: Nobody, vcpus: int = 1) -> float:
    """Nanoseconds of an access that goes `way`, of `vcpus` at once; `StateError` when some did not go that way."""
    stamps = Stamps(vcpus, way.settle)
    with _machine(MMIO_WRITES if way.mmio else PORT_WRITES, vcpus) as machine:
        way.attach(machine)
        for port in (BEGIN_PORT, END_PORT):
            machine.pio.add(port, 1, Trigger(stamps.meet))
        outcome = machine.run(_LONGEST_SECONDS)
        if outcome.reason != SHUTDOWN:
            raise StateError(f"the benchmark's guest ended early: {outcome.message or outcome.reason}")
    if way.seen != (ACCESSES + WARM_UP) * vcpus:
        raise StateError(f"{type(way).__name__} saw {way.seen} accesses, and not {(ACCESSES + WARM_UP) * vcpus}")
    return stamps.per_access()


def c_ns(vcpus: int = 1) -> float:
    """Nanoseconds of a port write in the loop in C, of `vcpus` at once, in a machine of the same kind."""
    stamps = Stamps(vcpus)

    def run(write_loop: Callable[[int], int]) -> None:
        for writes in (WARM_UP + 1, ACCESSES + 1):
            if write_loop(writes) == writes:
                stamps.meet()

    with _machine(PORT_WRITES, vcpus) as machine:
        threads = [threading.Thread(target=run, args=(each.vcpu.port_write_loop,)) for each in machine.vcpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return stamps.per_access()


WAYS: Mapping[str, type[Nobody]] = {
    "Python device": PythonDevice,
    "traced": Traced,
    "traced Python device": TracedDevice,
    "hook": Hook,
    "nobody": Nobody,
    "ioeventfd": Eventfd,
}
AT_ONCE = ("Python device", "ioeventfd")


def run(rounds: int = 50) -> Report:
    """The report, of `rounds` rounds."""
    report = Report("accesses")
    competitors: dict[str, Callable[[], float]] = {"port, C loop": c_ns, "2 vCPUs, C loop": lambda: c_ns(2)}
    for name, way in WAYS.items():
        competitors[f"port, {name}"] = partial(_sample, way)
        competitors[f"MMIO, {name}"] = partial(_sample, way, mmio=True)
    for name in AT_ONCE:
        competitors[f"2 vCPUs, {name}"] = partial(_sample, WAYS[name], vcpus=2)
    report.notes["traced writes kept by KVM"] = _coalesced()
    found = alternate(competitors, rounds, warm_up=2)
    in_c = report.add("port, C loop", found["port, C loop"], "ns")
    for space in ("port", "MMIO"):
        for name in WAYS:
            samples = report.add(f"{space}, {name}", found[f"{space}, {name}"], "ns")
            report.add(f"{space}, {name}, over C", samples.ratio(in_c))
    for name in ("C loop", *AT_ONCE):
        both = report.add(f"2 vCPUs, {name}", found[f"2 vCPUs, {name}"], "ns")
        report.add(f"2 vCPUs, {name}, throughput over 1", found[f"port, {name}"].ratio(both))
    return report


def _sample(way: type[Nobody], *, mmio: bool = False, vcpus: int = 1) -> float:
    return access_ns(way(mmio=mmio), vcpus)


def _coalesced() -> str:
    """Where KVM keeps the writes of a trace."""
    kept = []
    for name, mmio in (("ports", False), ("MMIO", True)):
        traced = Traced(mmio=mmio)
        access_ns(traced)
        if traced.is_coalesced:
            kept.append(name)
    return " and ".join(kept) or "none"
