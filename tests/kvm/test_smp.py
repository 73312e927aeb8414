"""Several vCPUs: how a guest starts them, and pauses, kicks, calls and ends while all of them are at work."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.kvm import System
from kvmpy.kvm.capabilities import KVM_CAP_MAX_VCPUS
from kvmpy.kvm.vcpu import KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import CRASH, DEBUG_EXIT, USER, Outcome
from kvmpy.testing.asm import assemble
from kvmpy.testing.images import ElfSegment, elf_image, elf_note
from kvmpy.units import MIB
from kvmpy.x86 import layout

GUESTS = Path(__file__).parent.parent / "guests"
SOON = 60  # Seconds after which something that has to happen counts as failed.
CODE = 2 * MIB
PORT = 0x5000
MMIO = 0xD0000000
STACK = 256


def left_open():
    return set(os.listdir("/proc/self/fd")), set(threading.enumerate())


def source(name):
    return (GUESTS / f"{name}.asm").read_text()


@pytest.fixture
def smp():
    """Makes a machine of smp.asm with `body` behind it, or of `body` alone; in the end nothing of it may be left.

    It has the `labels` of its code.
    """
    machines = []

    def make(body, vcpus, *, alone=False, **constants):
        text = body if alone else source("smp") + body
        code = assemble(text, bits=32, origin=CODE, **{"VCPUS": vcpus, "X2APIC": 0, **constants})
        segment = ElfSegment(CODE, code, memsz=len(code) + STACK * vcpus)
        kernel = elf_image([segment], bits=32, notes=elf_note(b"Xen", 18, CODE.to_bytes(4, "little")))
        machine = build(MachineConfig(kernel, memory=8 * MIB, vcpus=vcpus, debug_exit=0xF4))
        machines.append(machine)
        machine.labels = code.labels
        return machine

    # What is made once for the process is made now.
    with make("mov al, 42\nout 0xf4, al", 1, alone=True) as first:
        check_exit(first)
    before = left_open()
    yield make
    for machine in machines:
        machine.close()
        assert not any(vcpu._thread.is_alive() for vcpu in machine.vcpus)
    assert left_open() == before


def check_exit(machine, outcome=None):
    outcome = outcome or machine.run(SOON)
    assert (outcome.reason, outcome.status >> 1) == (DEBUG_EXIT, 42), (outcome.message, outcome.details)


def word(machine, label, index=0):
    return int.from_bytes(machine.memory.read(machine.labels[label] + 4 * index, 4), "little")


# --- starting them


def madt_ids(memory):
    """The APIC ids that ACPI tells of, those of enabled processors."""
    xsdt = struct.unpack("<Q", memory.read(layout.RSDP + 24, 8))[0]
    length = struct.unpack("<I", memory.read(xsdt + 4, 4))[0]
    for (address,) in struct.iter_unpack("<Q", bytes(memory.read(xsdt + 36, length - 36))):
        signature, size = struct.unpack("<4sI", memory.read(address, 8))
        if signature == b"APIC":
            table, at, ids = bytes(memory.read(address, size)), 44, []
            while at < size:
                if table[at] == 0 and table[at + 4] & 1:
                    ids.append(table[at + 3])
                at += table[at + 1]
            return ids
    return None


def mp_ids(memory):
    """The APIC ids in the MP table, and that of the bootstrap processor."""
    table = struct.unpack("<I", memory.read(layout.MP_FLOATING_POINTER + 4, 4))[0]
    count = struct.unpack("<H", memory.read(table + 34, 2))[0]
    processors = [bytes(memory.read(table + 44 + 20 * index, 20)) for index in range(count)]
    # Processors come first, and only they have 20 bytes.
    processors = [entry for index, entry in enumerate(processors) if all(e[0] == 0 for e in processors[: index + 1])]
    return [entry[1] for entry in processors if entry[3] & 1], [entry[1] for entry in processors if entry[3] & 2]


@pytest.mark.parametrize("x2apic", [0, 1])
@pytest.mark.parametrize("vcpus", [1, 2, 8, 32])
def test_every_processor_starts_with_the_id_that_the_tables_have(smp, system: System, vcpus, x2apic):
    if system.check_extension(KVM_CAP_MAX_VCPUS) < vcpus:
        pytest.skip("this host's KVM has fewer")
    machine = smp(source("smp_ids"), vcpus, X2APIC=x2apic)
    check_exit(machine)
    table = [[word(machine, "table", 4 * index + column) for column in range(4)] for index in range(vcpus)]
    assert table == [[index, index, vcpus, 1] for index in range(vcpus)]
    assert madt_ids(machine.memory) == list(range(vcpus))
    assert mp_ids(machine.memory) == (list(range(vcpus)), [0])


@pytest.mark.parametrize(("vcpus", "x2apic"), [(2, 0), (2, 1), (8, 0), (32, 1)])
def test_an_interrupt_goes_from_processor_to_processor(smp, vcpus, x2apic):
    machine = smp(source("smp_ipi"), vcpus, X2APIC=x2apic, ROUNDS=20)
    check_exit(machine)
    assert word(machine, "hops") == 20 * vcpus


def test_who_was_never_started_or_sleeps_is_called_paused_and_stopped(smp):
    machine = smp("cli\nhlt", 2, alone=True)
    machine.start()
    halted, waiting = machine.vcpus
    while halted.call(lambda vcpu: vcpu.mp_state()) != KVM_MP_STATE_HALTED:
        os.sched_yield()
    for _ in range(50):
        machine.pause()
        machine.resume()
        assert waiting.call(lambda vcpu: vcpu.mp_state()) == KVM_MP_STATE_UNINITIALIZED
        assert halted.call(lambda vcpu: vcpu.mp_state()) == KVM_MP_STATE_HALTED
    machine.stop()
    assert machine.wait(SOON).reason == USER


# --- all at work


class Counters:
    """Counts each vCPU's accesses; `stride` bytes are one vCPU's.  A write has to say how many there were with it."""

    def __init__(self, vcpus, stride):
        self.stride = stride
        self.writes = [0] * vcpus
        self.reads = [0] * vcpus
        self.moved = [threading.Event() for _ in range(vcpus)]
        self.wrong = []

    def write(self, offset, data):
        vcpu = offset // self.stride
        self.writes[vcpu] += 1
        if int.from_bytes(data, "little") != self.writes[vcpu]:
            self.wrong.append((vcpu, self.writes[vcpu], bytes(data)))

    def read(self, offset, data):
        vcpu = offset // self.stride
        self.reads[vcpu] += 1
        data[:] = self.reads[vcpu].to_bytes(len(data), "little")
        self.moved[vcpu].set()


class Load:
    """A machine with smp_load.asm and the devices that it wants."""

    def __init__(self, smp, vcpus, rounds=0):
        self.machine = smp(source("smp_load"), vcpus, PORT=PORT, MMIO=MMIO, ROUNDS=rounds)
        self.ports, self.memory = Counters(vcpus, 4), Counters(vcpus, 16)
        self.machine.pio.add(PORT, 4 * vcpus, self.ports)
        self.machine.mmio.add(MMIO, 16 * vcpus, self.memory)

    def counts(self, vcpu):
        """What the devices counted for one vCPU, in the order of a round."""
        return [self.ports.writes[vcpu], self.ports.reads[vcpu], self.memory.writes[vcpu], self.memory.reads[vcpu]]

    def wait_all_moved(self):
        """Until each vCPU has made an access from now on."""
        for moved in self.memory.moved:
            moved.clear()
        assert all(moved.wait(SOON) for moved in self.memory.moved), self.machine.outcome

    def check_standing(self):
        """The paused machine: what the devices counted is just what each vCPU has done, as its registers tell."""
        labels = self.machine.labels
        first, last = labels["round"], labels["end"]
        shared = 0
        for vcpu, thread in enumerate(self.machine.vcpus):
            regs = thread.call(lambda vcpu: vcpu.regs())
            if not first <= regs.rip < last:
                assert self.counts(vcpu) == [0, 0, 0, 0]  # It is not there yet.
                continue
            done = {
                name: regs.rbx - (first < regs.rip < labels[name])
                for name in ("read_port", "compare_port", "read_memory", "compare_memory", "done")
            }
            shared += done.pop("done")
            assert self.counts(vcpu) == list(done.values()), (vcpu, hex(regs.rip), regs.rbx)
            stats = thread.stats
            assert stats.ports.get(PORT + 4 * vcpu, 0) == self.ports.writes[vcpu] + self.ports.reads[vcpu]
            assert stats.mmio.get(MMIO + 16 * vcpu, 0) == self.memory.writes[vcpu] + self.memory.reads[vcpu]
        assert word(self.machine, "shared") == shared
        self.check_right()

    def check_finished(self, rounds):
        """The machine that ended by itself."""
        for vcpu in range(len(self.machine.vcpus)):
            assert self.counts(vcpu) == [rounds] * 4
        assert word(self.machine, "shared") == rounds * len(self.machine.vcpus)
        self.check_right()

    def check_right(self):
        assert not self.ports.wrong
        assert not self.memory.wrong
        assert self.machine.outcome is None or self.machine.outcome.reason in (DEBUG_EXIT, USER)


def pause_often(load, times):
    machine = load.machine
    machine.start()
    for number in range(times):
        # Mostly a pause comes right behind the last one; now and then each vCPU is waited for.
        moved = load.ports.moved[number // 10 % len(machine.vcpus)]
        if number % 10 == 0:
            moved.clear()
        if number:
            machine.resume()
        assert moved.wait(SOON), machine.outcome
        machine.pause()
        load.check_standing()
    machine.resume()
    load.wait_all_moved()
    machine.stop()
    load.check_right()


def test_a_thousand_pauses_of_all_vcpus_lose_nothing(smp):
    pause_often(Load(smp, 4), 1000)


def test_thirty_two_vcpus_are_paused_too(smp):
    pause_often(Load(smp, 32), 20)


def shake(load, rounds, times):
    """Kicks, pauses and calls from many threads while the guest goes its rounds."""
    machine, vcpus = load.machine, load.machine.vcpus

    def kick(number):
        vcpu = vcpus[number % len(vcpus)].vcpu
        vcpu.kick()
        while vcpu.immediate_exit and machine.outcome is None:  # Two before it looks are one.
            os.sched_yield()

    def pause(_number):
        machine.pause()
        machine.resume()

    def call(number):
        vcpus[number % len(vcpus)].call(lambda vcpu: vcpu.regs())

    def often(action):
        for number in range(times):
            action(number)

    machine.start()
    load.wait_all_moved()
    threads = [threading.Thread(target=often, args=(action,)) for action in (kick, kick, pause, pause, call, call)]
    for thread in threads:
        thread.start()
    outcome = machine.wait(SOON)
    for thread in threads:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in threads)
    check_exit(machine, outcome)
    load.check_finished(rounds)


def test_kicks_from_all_sides_lose_nothing(smp):
    shake(Load(smp, 4, rounds=1000), 1000, 200)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_long_time_of_pauses_and_kicks_loses_nothing(smp):
    pause_often(Load(smp, 8), 5000)
    for _ in range(20):
        shake(Load(smp, 8, rounds=2000), 2000, 1000)


def test_each_vcpu_is_called_while_the_others_run(smp):
    load = Load(smp, 4)
    machine = load.machine
    machine.start()
    load.wait_all_moved()

    def look(vcpu):
        return threading.current_thread(), vcpu.id, vcpu.regs().rbx

    for number, thread in enumerate(machine.vcpus):
        seen = 0
        for _ in range(100):
            where, vcpu_id, rounds = thread.call(look)
            assert (where, vcpu_id) == (thread._thread, number)
            assert rounds >= seen
            seen = rounds
        other = load.ports.moved[(number + 1) % 4]
        other.clear()
        assert thread.call(lambda vcpu, other=other: other.wait(SOON))  # The others run on.
    load.wait_all_moved()
    machine.pause()
    load.check_standing()


@pytest.mark.parametrize("paused", [False, True])
def test_a_machine_ends_while_a_call_is_under_way(smp, paused):
    load = Load(smp, 2)
    machine = load.machine
    machine.start(paused=paused)
    inside, leave, results = threading.Event(), threading.Event(), []

    def take_time(vcpu):
        inside.set()
        return leave.wait(SOON), vcpu.id

    caller = threading.Thread(target=lambda: results.append(machine.vcpus[1].call(take_time)))
    caller.start()
    assert inside.wait(SOON)
    ender = threading.Thread(target=machine.end, args=(Outcome(USER),))
    ender.start()
    ender.join(SOON)
    assert not ender.is_alive()
    leave.set()
    caller.join(SOON)
    assert results == [(True, 1)]
    assert machine.wait(SOON).reason == USER


def test_a_pause_waits_for_the_call_that_is_under_way(smp):
    load = Load(smp, 2)
    machine = load.machine
    machine.start(paused=True)
    machine.pause()
    inside, leave, order = threading.Event(), threading.Event(), []

    def take_time(vcpu):
        inside.set()
        leave.wait(SOON)
        order.append("call")

    def pause():
        machine.pause()
        order.append("pause")

    caller = threading.Thread(target=machine.vcpus[1].call, args=(take_time,))
    caller.start()
    assert inside.wait(SOON)
    pauser = threading.Thread(target=pause)
    pauser.start()
    pauser.join(0.1)
    assert pauser.is_alive()
    leave.set()
    for thread in (caller, pauser):
        thread.join(SOON)
    assert order == ["call", "pause"]


class Gate:
    """A device that holds everyone who writes to it, until it is opened."""

    def __init__(self, vcpus):
        self.all_inside = threading.Barrier(vcpus + 1)
        self.opened = threading.Event()
        self.writes = []

    def write(self, offset, data):
        self.writes.append(offset // 4)
        self.all_inside.wait(SOON)
        self.opened.wait(SOON)

    def read(self, offset, data):
        data[:] = (1).to_bytes(len(data), "little")


@pytest.mark.parametrize("end", ["stop", "pause"])
def test_a_machine_whose_vcpus_are_all_in_exits_is_ended_and_paused(smp, end):
    machine, gate = smp(source("smp_load"), 8, PORT=PORT, MMIO=MMIO, ROUNDS=0), Gate(8)
    machine.pio.add(PORT, 4 * 8, gate)
    machine.start()
    gate.all_inside.wait(SOON)
    caller = threading.Thread(target=getattr(machine, end))
    caller.start()
    while not all(thread.vcpu.immediate_exit for thread in machine.vcpus):
        os.sched_yield()
    assert caller.is_alive()
    gate.opened.set()
    caller.join(SOON)
    assert not caller.is_alive()
    assert sorted(gate.writes) == list(range(8))
    for thread in machine.vcpus:
        assert not thread._thread.is_alive() or end == "pause"
        assert thread.stats.ports == {PORT + 4 * thread.vcpu.id: 1}
        assert thread.call(lambda vcpu: vcpu.regs().rip) == machine.labels["read_port"]


# --- the end of one is the end of all

FAULT = """
main:   cmp     ebp, FAULTY
        je      fault
        mov     edx, PORT
again:  lock inc dword [shared]
        out     dx, eax
        jmp     again
fault:  cmp     dword [shared], 100     ; The others are at work.
        jb      fault
        lidt    [nothing]
        ud2
        align   4
shared: dd      0
nothing: dd     0, 0
on_ipi:
stacks:
"""


@pytest.mark.parametrize("faulty", [0, 2])
def test_a_triple_fault_of_one_vcpu_ends_the_machine_and_tells_of_that_one(smp, faulty):
    machine = smp(FAULT, 4, FAULTY=faulty, PORT=PORT)
    outcome = machine.run(SOON)
    assert (outcome.reason, outcome.status) == (CRASH, 3)
    assert "triple fault" in outcome.message
    assert outcome.details.startswith(f"vcpu {faulty}:")


def test_vcpus_that_crash_at_once_end_it_once(smp):
    machine = smp("main: lidt [nothing]\nud2\nnothing: dd 0, 0\non_ipi:\nstacks:", 8)
    ends = []
    machine.on_end.append(ends.append)
    assert machine.run(SOON).reason == CRASH
    assert len(ends) == 1


def test_whoever_kicks_a_machine_that_ends_and_is_closed_does_no_harm(smp):
    for _ in range(20):
        machine = smp(source("smp_ipi"), 2, ROUNDS=1)
        closed = threading.Event()

        def kick(machine=machine, closed=closed):
            while not closed.is_set():
                for thread in machine.vcpus:
                    thread.vcpu.kick()
                os.sched_yield()

        kickers = [threading.Thread(target=kick) for _ in range(2)]
        for kicker in kickers:
            kicker.start()
        machine.start()
        machine.wait(0.01)
        machine.close()
        closed.set()
        for kicker in kickers:
            kicker.join(SOON)
            assert not kicker.is_alive()
