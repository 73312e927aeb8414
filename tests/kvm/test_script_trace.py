"""kvmpy.machine.script.trace: accesses as records, kept by KVM where it can."""

from __future__ import annotations

import threading

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.errors import ConfigError
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import HOST_ERROR, SHUTDOWN
from kvmpy.testing.asm import assemble
from kvmpy.units import MIB

SOON = 20


@pytest.fixture
def guest():
    machines = []

    def make(source, bits=16):
        code = assemble(source, bits=bits, origin=0x7C00 if bits == 16 else MIB)
        machines.append(build(MachineConfig(code, protocol=f"flat{bits}", memory=2 * MIB)))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


COUNT = "mov cx, 500\nagain: mov ax, cx\nout 0x42, ax\nloop again\nhlt"


def test_writes_that_nobody_minds_cost_no_exit_and_all_are_there_in_order(guest):
    machine = guest(COUNT)
    with machine.trace(range(0x42, 0x44)) as trace:
        assert trace.is_coalesced
        assert machine.run(SOON).reason == SHUTDOWN
        records = list(trace)
    assert [record.value for record in records] == list(range(500, 0, -1))
    # The ring has room for 169 of them; when it is full, one leaves the guest.
    assert machine.vcpus[0].stats.ports.get(0x42, 0) < 100
    assert {(record.is_port, record.address, record.size, record.is_write) for record in records} == {
        (True, 0x42, 2, True)
    }


def test_reads_and_writes_keep_their_order(guest):
    machine = guest("mov al, 1\nout 0x42, al\nin al, 0x43\nmov al, 2\nout 0x42, al\nhlt")
    with machine.trace(range(0x42, 0x44)) as trace:
        machine.run(SOON)
        records = list(trace)
    assert [(record.is_write, record.value) for record in records] == [(True, 1), (False, 0xFF), (True, 2)]
    assert records[1].vcpu == 0
    assert str(records[0]) == "write port 0x42 0x01"


def test_a_device_that_is_traced_gets_every_access_and_its_answers_are_seen(guest):
    machine = guest("mov al, 1\nout 0x42, al\nin al, 0x42\nhlt")

    class Adder:
        value = 0

        def read(self, offset, data):
            data[0] = self.value + 1

        def write(self, offset, data):
            self.value = data[0]

    machine.pio.add(0x42, 1, Adder())
    with machine.trace(range(0x40, 0x50)) as trace:
        assert not trace.is_coalesced
        machine.run(SOON)
        assert [(record.is_write, record.value) for record in trace] == [(True, 1), (False, 2)]


def test_memory_mapped_writes_are_traced_too(guest):
    machine = guest("mov dword [0x300010], 5\nhlt", 32)
    with machine.trace(range(0x300000, 0x301000), mmio=True) as trace:
        assert trace.is_coalesced
        machine.run(SOON)
        assert [(record.address, record.value, record.is_port) for record in trace] == [(0x300010, 5, False)]


def test_a_function_is_called_and_what_it_raises_ends_the_machine(guest):
    machine = guest("out 0x42, al\nhere: jmp here")

    def bad(record):
        raise ValueError("no")

    machine.trace(range(0x42, 0x43), bad)
    outcome = machine.run(SOON)
    assert outcome.reason == HOST_ERROR
    assert "ValueError: no" in outcome.message


def test_a_write_is_told_of_while_the_guest_runs_on(guest):
    machine = guest("out 0x42, al\nhere: jmp here")
    with machine.trace(range(0x42, 0x43)) as trace:
        machine.start()
        assert next(iter(trace)).address == 0x42
    machine.stop()


def test_a_paused_machine_has_told_everything(guest):
    machine = guest("again: inc word [0x2000]\nout 0x42, al\njmp again")
    with machine.trace(range(0x42, 0x43)) as trace:
        machine.start()
        count = 0
        while count < 50:
            count += len(trace.take())
        machine.pause()
        count += len(trace.take())
        assert int.from_bytes(machine.memory.read(0x2000, 2), "little") - count in (0, 1)


def test_a_hook_that_comes_later_sees_each_write_at_once(guest):
    machine = guest("again: mov al, 1\nout 0x42, al\nin al, 0x43\nhlt")
    seen = []
    with machine.trace(range(0x42, 0x43)) as trace:
        machine.on_pio(0x42, lambda event: seen.append(event.value))
        assert not trace.is_coalesced
        machine.run(SOON)
        assert seen == [1]
        assert [record.value for record in trace] == [1]


def test_what_is_closed_leaves_nothing_behind(guest):
    machine = guest(COUNT)
    threads = threading.active_count()
    for _ in range(3):
        trace = machine.trace(range(0x42, 0x44))
        trace.close()
        trace.close()
        assert list(trace) == []
    assert threading.active_count() == threads
    assert machine.pio.find(0x42) is None
    assert machine.on_end == []
    machine.run(SOON)
    assert machine.vcpus[0].stats.ports == {0x42: 500}


def test_ram_cannot_be_traced(guest):
    with pytest.raises(ConfigError):
        guest("hlt").trace(range(0x1000, 0x2000), mmio=True)
