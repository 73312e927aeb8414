"""kvmpy.machine.script.hooks: what a tiny guest does is seen and answered by functions."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.errors import ConfigError
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import CRASH, DEBUG_EXIT, HOST_ERROR, SHUTDOWN, TIMEOUT, USER
from kvmpy.testing.asm import assemble
from kvmpy.units import MIB

SOON = 20
ORIGIN = {16: 0x7C00, 32: MIB, 64: MIB}


@pytest.fixture
def guest():
    """Makes a machine of assembler source; what it writes to port 0xf4 is its exit status, doubled plus one."""
    machines = []

    def make(source, bits=64, **options):
        code = assemble(source, bits=bits, origin=ORIGIN[bits])
        config = MachineConfig(code, protocol=f"flat{bits}", memory=2 * MIB, debug_exit=0xF4, **options)
        machines.append(build(config))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


def exit_value(machine):
    outcome = machine.run(SOON)
    assert outcome.reason == DEBUG_EXIT, (outcome, outcome.details)
    return outcome.status >> 1


# --- ports


def test_a_read_is_answered_with_what_the_hook_returns(guest):
    machine = guest("in al, 0x42\nout 0xf4, al\nhlt")
    machine.on_pio(0x42, lambda event: 5)
    assert exit_value(machine) == 5


def test_a_decorator_gets_what_the_guest_writes(guest):
    machine = guest("mov eax, 0x12345678\nout 0x42, eax\nout 0x43, al\nhlt")
    seen = []

    @machine.on_pio(range(0x42, 0x44))
    def look(event):
        seen.append((event.address, event.size, event.value, event.is_write, event.vcpu))

    assert machine.run(SOON).reason == SHUTDOWN
    assert seen == [(0x42, 4, 0x12345678, True, 0), (0x43, 1, 0x78, True, 0)]
    look.remove()
    look.remove()


def test_a_hook_may_set_the_value_instead(guest):
    machine = guest("in al, 0x42\nout 0xf4, al\nhlt")

    @machine.on_pio(0x42)
    def answer(event):
        assert event.value is None
        event.value = 0x106  # A byte's worth of it counts.

    assert exit_value(machine) == 6


def test_the_device_beneath_is_asked_where_a_hook_has_no_answer(guest):
    machine = guest("in al, 0x42\nadd al, 1\nout 0xf4, al\nhlt")
    machine.on_pio(0x42, lambda event: None)
    assert exit_value(machine) == 0


def test_a_hook_changes_what_a_device_gets(guest):
    machine = guest("mov al, 1\nout 0xf4, al\nhlt")

    @machine.on_pio(0xF4)
    def double(event):
        event.value *= 2

    assert exit_value(machine) == 2


def test_a_swallowed_write_reaches_no_device(guest):
    machine = guest("mov al, 1\nout 0xf4, al\nhlt")
    machine.on_pio(0xF4, lambda event: event.swallow())
    assert machine.run(SOON).reason == SHUTDOWN


def test_hooks_are_asked_in_turn_and_removed_in_any_order(guest):
    machine = guest("mov al, 3\nout 0xf4, al\nhlt")
    before = machine.pio.find(0xF4).device
    order = []
    hooks = [machine.on_pio(range(0xF0, 0xF8), lambda event, n=n: order.append(n)) for n in range(3)]
    hooks[1].remove()
    assert exit_value(machine) == 3
    assert order == [0, 2]
    hooks[2].remove()
    hooks[0].remove()
    assert machine.pio.find(0xF4).device is before
    assert machine.pio.find(0xF0) is None


def test_a_hook_that_removes_itself_is_called_once(guest):
    machine = guest("mov cx, 3\nagain: out 0x42, al\nloop again\nhlt", 16)
    calls = []

    @machine.on_pio(0x42)
    def once(event):
        calls.append(event)
        once.remove()
        other.remove()

    other = machine.on_pio(0x42, calls.append)
    machine.run(SOON)
    # The other was asked for this access already when it was removed.
    assert len(calls) == 2


def test_a_hook_that_comes_while_the_guest_runs_is_called(guest):
    machine = guest("again: out 0x80, al\nout 0xe9, al\njmp again")
    machine.start()
    for port in (0x80, 0xE9):
        called = threading.Event()
        hook = machine.on_pio(port, lambda event, called=called: called.set())
        assert called.wait(SOON)
        hook.remove()


def test_a_hook_reads_and_writes_registers_and_memory(guest):
    machine = guest(
        """
        mov     rbx, 7
        mov     rsi, text
        out     0x42, al
        mov     eax, ebx
        add     al, [text]
        out     0xf4, al
        hlt
text:   db      "hello", 0
        """
    )

    @machine.on_pio(0x42)
    def change(event):
        registers = event.registers
        assert event.memory.read_string(registers.rsi) == b"hello"
        assert event.physical_memory.read(registers.rsi, 5) == b"hello"
        event.memory.write(registers.rsi, b"\x01")
        registers.bl += 2

    assert exit_value(machine) == 10


def test_a_string_access_is_one_event_an_element(guest):
    machine = guest("mov dx, 0x42\nmov rsi, text\nmov ecx, 3\ncld\nrep outsb\nhlt\ntext: db 'abc'")
    seen = []
    machine.on_pio(0x42, lambda event: seen.append(event.value))
    machine.run(SOON)
    assert bytes(seen) == b"abc"


# --- memory-mapped I/O, MSRs, calls, exits


def test_memory_mapped_accesses_are_seen_and_answered(guest):
    machine = guest("mov eax, [0x300004]\nmov [0x300008], ax\nout 0xf4, al\nhlt", 32)
    seen = []

    @machine.on_mmio(range(0x300000, 0x301000))
    def page(event):
        seen.append((event.address, event.size, event.is_write, event.value))
        return 0x21

    assert exit_value(machine) == 0x21
    assert seen == [(0x300004, 4, False, None), (0x300008, 2, True, 0x21)]


RDMSR = "mov ecx, INDEX\nrdmsr\nout 0xf4, al\nhlt"


def test_an_msr_that_no_processor_has_is_answered(guest):
    machine = guest(RDMSR.replace("INDEX", "0x4b564d00"))
    machine.on_msr(0x4B564D00, lambda event: 9)
    assert exit_value(machine) == 9


def test_an_msr_that_kvm_knows_keeps_its_value_unless_a_hook_says_otherwise(guest):
    source = "mov ecx, 0xc0000102\nmov eax, 5\nxor edx, edx\nwrmsr\nrdmsr\nout 0xf4, al\nhlt"
    machine = guest(source)
    seen = []
    machine.on_msr(0xC0000102, lambda event: seen.append((event.is_write, event.value)))
    assert exit_value(machine) == 5
    assert seen == [(True, 5), (False, None)]

    machine = guest(source)

    @machine.on_msr(0xC0000102)
    def change(event):
        if event.is_write:
            event.value = 6

    assert exit_value(machine) == 6


def test_a_hook_has_the_guest_fault(guest):
    machine = guest(RDMSR.replace("INDEX", "0xc0000102"))
    machine.on_msr(0xC0000102, lambda event: event.fault())
    assert machine.run(SOON).reason == CRASH  # It has no handler for it.


def test_a_removed_msr_hook_is_not_asked(guest):
    machine = guest(RDMSR.replace("INDEX", "0xc0000102"))
    machine.on_msr(0xC0000102, lambda event: 9).remove()
    assert exit_value(machine) == 0


def test_a_doorbell_has_a_number_arguments_and_a_result(guest):
    machine = guest(
        """
        mov     eax, 3
        mov     edi, 4
        mov     esi, 5
        mov     dx, 0x5000
        out     dx, eax
        out     0xf4, al
        hlt
        """
    )

    @machine.on_doorbell(0x5000)
    def multiply(call):
        assert call.number == 3
        return call.arguments[0] * call.arguments[1]

    assert exit_value(machine) == 20


def test_an_exit_without_a_port_can_be_answered(guest):
    machine = guest("hlt\nmov al, 4\nout 0xf4, al\nhlt")
    seen = []

    @machine.on_exit("hlt")
    def go_on(event):
        seen.append(event.reason)
        return True

    assert exit_value(machine) == 4
    assert seen == ["hlt"]


def test_an_exit_that_is_only_looked_at_is_dealt_with_as_ever(guest):
    machine = guest("hlt")
    seen = []
    machine.on_exit("KVM_EXIT_HLT", seen.append)
    assert machine.run(SOON).reason == SHUTDOWN
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("ask", "advice"),
    [
        (lambda machine: machine.on_hypercall(1, print), "on_doorbell"),
        (lambda machine: machine.on_exit("io", print), "on_pio"),
        (lambda machine: machine.on_exit("mmio", print), "on_mmio"),
        (lambda machine: machine.on_exit("nonsense", print), "none of"),
        (lambda machine: machine.on_mmio(0x1000, print), "RAM"),
        (lambda machine: machine.on_msr(0x830, print), "local APIC"),
        (lambda machine: machine.on_pio(range(0xFFFF, 0x10001), print), "outside"),
        (lambda machine: machine.on_pio(range(0), print), "no run"),
    ],
)
def test_what_kvm_cannot_deliver_is_refused_with_advice(guest, ask, advice):
    machine = guest("hlt")
    with pytest.raises(ConfigError, match=advice):
        ask(machine)
    assert machine.run(SOON).reason == SHUTDOWN


# --- what a hook does to the guest


VECTORS = """
        lidt    [pointer]
        mov     word [VECTOR * 4], handler
        mov     word [VECTOR * 4 + 2], 0
        sti
        out     0x42, al
        nop
        nop
        mov     al, 1
        out     0xf4, al
        hlt
handler:
        mov     al, 2
        out     0xf4, al
        hlt
pointer: dw 0x3ff
        dd      0
"""


@pytest.mark.parametrize(
    ("vector", "inject"),
    [
        (13, lambda event: event.inject_exception(13)),
        (0x30, lambda event: event.inject_interrupt(0x30)),
    ],
)
def test_exceptions_and_interrupts_are_taken_by_the_guest(guest, vector, inject):
    machine = guest(VECTORS.replace("VECTOR", str(vector)), 16)
    machine.on_pio(0x42, inject)
    assert exit_value(machine) == 2


def test_a_hook_pauses_the_machine(guest):
    machine = guest("out 0x42, al\nmov al, 1\nout 0xf4, al\nhlt")
    paused = threading.Event()

    @machine.on_pio(0x42)
    def pause(event):
        event.machine.pause()
        paused.set()

    machine.start()
    assert paused.wait(SOON)
    machine.pause()
    assert machine.state == "paused"
    assert 0xF4 not in machine.vcpus[0].stats.ports
    machine.resume()
    assert machine.wait(SOON).reason == DEBUG_EXIT


# --- hooks that go wrong


def test_an_exception_in_a_hook_ends_the_machine_with_traceback_and_state(guest):
    machine = guest("mov ebx, 0x1234\nout 0x42, al\nhere: jmp here")

    @machine.on_pio(0x42)
    def divide(event):
        raise LookupError("no quotient")

    outcome = machine.run(SOON)
    assert (outcome.reason, outcome.status) == (HOST_ERROR, 1)
    assert outcome.message == "a script's hook failed, <on_pio(0x42): divide>: LookupError: no quotient"
    assert 'raise LookupError("no quotient")' in outcome.details
    assert "0000000000001234" in outcome.details
    assert os.path.join("machine", "script") not in outcome.details


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("mov eax, [0x300000]\nhere: jmp here", lambda machine, bad: machine.on_mmio(0x300000, bad)),
        ("mov ecx, 0xc0000102\nrdmsr\nhere: jmp here", lambda machine, bad: machine.on_msr(0xC0000102, bad)),
        ("out 0x42, al\nhere: jmp here", lambda machine, bad: machine.on_doorbell(0x42, bad)),
        ("hlt\nhere: jmp here", lambda machine, bad: machine.on_exit("hlt", bad)),
    ],
)
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_any_hook_that_raises_ends_the_machine(guest, source, place, error):
    machine = guest(source, 32)

    def bad(event):
        raise error

    place(machine, bad)
    outcome = machine.run(SOON)
    assert outcome.reason == HOST_ERROR
    assert error.__name__ in outcome.message


def test_an_answer_that_is_no_number_ends_the_machine(guest):
    machine = guest("in al, 0x42\nhere: jmp here")
    machine.on_pio(0x42, lambda event: "five")
    assert machine.run(SOON).reason == HOST_ERROR


def test_a_device_that_leaves_by_sys_exit_ends_the_machine(guest):
    class Bad:
        def read(self, offset, data):
            sys.exit(3)

        write = None

    machine = guest("in al, 0x42\nhere: jmp here")
    machine.pio.add(0x42, 1, Bad())
    outcome = machine.run(SOON)
    assert outcome.reason == HOST_ERROR
    assert "rip" in outcome.details


def test_a_machine_whose_hook_blocks_can_be_stopped(guest):
    machine = guest("out 0x42, al\nhere: jmp here")
    inside, leave, left = threading.Event(), threading.Event(), threading.Event()

    @machine.on_pio(0x42)
    def block(event):
        inside.set()
        leave.wait(SOON)
        left.set()

    machine.start()
    assert inside.wait(SOON)
    assert machine.wait(0.01).reason == TIMEOUT
    machine.close()
    leave.set()
    assert left.wait(SOON)


def test_a_hook_may_stop_its_machine(guest):
    machine = guest("out 0x42, al\nhere: jmp here")
    machine.on_pio(0x42, lambda event: event.machine.stop())
    assert machine.run(SOON).reason == USER


def test_a_machine_without_hooks_loads_nothing_of_them():
    program = """
import sys
from kvmpy import MachineConfig, build
with build(MachineConfig(b"\\xf4", protocol="flat16", memory=1 << 20)) as machine:
    machine.run(20)
print([name for name in sys.modules if name.startswith("kvmpy.machine.script")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
