"""kvmpy.machine.script.debugger: breakpoints and steps in tiny guests, in each mode."""

from __future__ import annotations

import threading

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.errors import StateError
from kvmpy.machine.builder import build
from kvmpy.machine.machine import PAUSED
from kvmpy.machine.outcome import CRASH, DEBUG_EXIT, SHUTDOWN, USER
from kvmpy.machine.script.debugger import BREAKPOINT, END, PAUSE, STEP
from kvmpy.machine.script.memory import NotMappedError
from kvmpy.machine.script.symbols import Symbols
from kvmpy.testing.asm import assemble
from kvmpy.units import MIB

SOON = 20
ORIGIN = {16: 0x7C00, 32: MIB, 64: MIB}
MODES = (16, 32, 64)


@pytest.fixture
def guest():
    """Makes a machine of assembler source; `machine.labels` are its labels."""
    machines = []

    def make(source, bits=64, **options):
        code = assemble(source, bits=bits, origin=ORIGIN[bits])
        machine = build(MachineConfig(code, protocol=f"flat{bits}", memory=2 * MIB, **options))
        machine.labels = code.labels
        machines.append(machine)
        return machine

    yield make
    for machine in machines:
        machine.close()


COUNT = """
        mov     ecx, 3
again:  dec     ecx
        jnz     again
done:   mov     al, 7
        out     0xf4, al
        hlt
"""


@pytest.mark.parametrize("bits", MODES)
def test_a_breakpoint_is_hit_each_time_and_the_guest_ends_as_without_it(guest, bits):
    machine = guest(COUNT, bits, debug_exit=0xF4)
    again = machine.labels["again"]
    with machine.debugger() as debugger:
        breakpoint = debugger.break_at(again)
        seen = []
        while (stop := debugger.run(SOON)).reason == BREAKPOINT:
            assert (stop.address, stop.breakpoint, stop.vcpu) == (again, breakpoint, 0)
            seen.append(debugger.registers().ecx)
        assert seen == [3, 2, 1]
        assert breakpoint.hits == 3
        assert stop.reason == END
        assert stop.outcome is machine.wait()
    assert (machine.outcome.reason, machine.outcome.status) == (DEBUG_EXIT, 15)


@pytest.mark.parametrize("bits", MODES)
def test_single_steps_go_through_every_instruction(guest, bits):
    source = """
        mov     ebx, 5
        out     0x10, al
        in      al, 0x10
second: inc     ebx
        mov     ecx, 2
        nop
        hlt
    """
    machine = guest(source, bits)
    with machine.debugger() as debugger:
        addresses = [debugger.pc()]
        while addresses[-1] < machine.labels["second"]:
            addresses.append(debugger.step().address)
        assert len(addresses) == 4
        assert debugger.registers().ebx == 5
        assert debugger.registers().al == 0xFF
        stop = debugger.step(count=2)
        assert stop.reason == STEP
        assert (debugger.registers().ebx, debugger.registers().ecx) == (6, 2)
        assert machine.vcpus[0].stats.ports == {0x10: 2}


def test_a_step_stops_behind_an_access_to_a_device_in_memory(guest):
    machine = guest("mov dword [0x300000], 5\nnext: inc dword [0x300000]\nlast: mov eax, 1\nhlt", 32)

    class Cell:
        value = 0

        def read(self, offset, data):
            data[:] = self.value.to_bytes(len(data), "little")

        def write(self, offset, data):
            self.value = int.from_bytes(data, "little")

    cell = Cell()
    machine.mmio.add(0x300000, 4, cell)
    with machine.debugger() as debugger:
        assert debugger.step().address == machine.labels["next"]
        assert cell.value == 5
        assert debugger.step().address == machine.labels["last"]
        assert cell.value == 6


def test_a_step_finishes_what_the_host_cannot_emulate(guest):
    machine = guest("mov eax, 0xff\npopcnt ecx, eax\ndone: hlt")
    with machine.debugger() as debugger:
        assert debugger.step(count=2).address == machine.labels["done"]
        assert debugger.registers().ecx == 8


def test_a_breakpoint_on_the_way_of_many_steps_ends_them(guest):
    machine = guest(COUNT)
    with machine.debugger() as debugger:
        debugger.break_at(machine.labels["done"])
        stop = debugger.step(count=1000)
        assert (stop.reason, stop.address) == (BREAKPOINT, machine.labels["done"])
        assert debugger.run(SOON).reason == END


def test_code_is_as_it_was_while_the_machine_stands_still(guest):
    machine = guest(COUNT)
    code = bytes(machine.memory.read(MIB, 32))
    with machine.debugger() as debugger:
        debugger.break_at(machine.labels["again"])
        debugger.run(SOON)
        assert machine.memory.read(MIB, 32) == code
    machine.wait(SOON)
    assert machine.memory.read(MIB, 32) == code


def test_a_removed_breakpoint_is_not_hit(guest):
    machine = guest(COUNT)
    with machine.debugger() as debugger:
        breakpoint = debugger.break_at(machine.labels["again"])
        debugger.run(SOON)
        breakpoint.remove()
        breakpoint.remove()
        assert debugger.run(SOON).outcome.reason == SHUTDOWN


def test_two_breakpoints_at_one_place_are_one_stop(guest):
    machine = guest(COUNT)
    with machine.debugger() as debugger:
        first, second = (debugger.break_at(machine.labels["done"]) for _ in range(2))
        assert debugger.run(SOON).reason == BREAKPOINT
        first.remove()
        assert machine.memory.read(machine.labels["done"], 1) == b"\xb0"
        second.remove()
        assert debugger.run(SOON).reason == END


def test_registers_and_memory_that_are_changed_are_what_the_guest_sees(guest):
    machine = guest("wait: jmp wait\nmov eax, [0x3000]\nadd eax, ebx\nout 0xf4, al\nhlt", 32, debug_exit=0xF4)
    machine.start()
    with machine.debugger() as debugger:
        registers = debugger.registers()
        registers.ebx = 3
        registers.eip += 2
        debugger.memory().write_int(0x3000, 4, 4)
        assert debugger.run(SOON).outcome.status == 15


def test_an_int3_of_the_guest_itself_is_its_own(guest):
    # Without a handler it is the guest's end, as it would be without a debugger.
    machine = guest("lidt [none]\nhere: int3\nhlt\nnone: dw 0\ndd 0", 32)
    with machine.debugger() as debugger:
        debugger.break_at(machine.labels["here"])
        assert debugger.run(SOON).reason == BREAKPOINT
        assert debugger.run(SOON).outcome.reason == CRASH


def test_a_running_machine_is_stopped_and_runs_on_when_the_debugger_is_closed(guest):
    machine = guest("again: inc ebx\njmp again")
    machine.start()
    debugger = machine.debugger()
    assert machine.state == PAUSED
    before = debugger.registers().rbx
    assert debugger.run(timeout=0.01) is None
    assert debugger.pause().reason == PAUSE
    assert debugger.registers().rbx > before
    debugger.close()
    debugger.close()
    assert not any(machine.vcpus[0].context.hooks.values())
    machine.stop()
    assert machine.wait().reason == USER


def test_what_needs_a_standing_machine_says_so(guest):
    machine = guest("again: jmp again")
    with machine.debugger() as debugger:
        with pytest.raises(StateError):
            machine.debugger()
        with pytest.raises(NotMappedError):
            debugger.break_at(1 << 40)
        debugger.resume()
        with pytest.raises(StateError):
            debugger.registers()
        with pytest.raises(StateError):
            debugger.step()
        machine.stop()
        assert debugger.wait(SOON).reason == END
        with pytest.raises(StateError):
            debugger.resume()


def test_another_thread_may_interrupt_a_wait(guest):
    machine = guest("again: jmp again")
    with machine.debugger() as debugger:
        debugger.resume()
        thread = threading.Thread(target=debugger.interrupt)
        thread.start()
        assert debugger.wait(SOON).reason == PAUSE
        thread.join()


def test_a_hundred_stops_lose_nothing(guest):
    machine = guest("mov ecx, 100\nagain: inc ebx\nloop again\nmov eax, ebx\nout 0xf4, al\nhlt", 32, debug_exit=0xF4)
    with machine.debugger() as debugger:
        breakpoint = debugger.break_at(machine.labels["again"])
        while (stop := debugger.run(SOON)).reason == BREAKPOINT:
            pass
        assert breakpoint.hits == 100
        assert stop.outcome.status == 100 << 1 & 0xFF | 1


@pytest.fixture
def two_vcpus(guest):
    """A machine of two vCPUs that run the same code from the same state, each with its own RBX."""

    def make(source):
        machine = guest(source, vcpus=2)
        first, second = (thread.vcpu for thread in machine.vcpus)
        second.set_sregs(first.sregs())
        second.set_regs(first.regs())
        return machine

    return make


def test_each_pass_of_each_vcpu_is_one_stop_and_all_stand_still(two_vcpus):
    machine = two_vcpus("again: lock inc dword [0x3000]\ninc rbx\njmp again")
    again = machine.labels["again"]
    passes = {0: 0, 1: 0}
    with machine.debugger() as debugger:
        breakpoint = debugger.break_at(again)
        debugger.step(0)  # It stands there at first, and passes.
        for number in range(200):
            stop = debugger.run(SOON)
            assert (stop.reason, stop.address) == (BREAKPOINT, again)
            passes[stop.vcpu] += 1
            counts = [debugger.registers(vcpu).rbx for vcpu in (0, 1)]
            assert debugger.pc(stop.vcpu) == again
            # The second vCPU's first pass is told of, the first one's was the step.
            assert counts[stop.vcpu] == passes[stop.vcpu] - stop.vcpu
            assert breakpoint.hits == number + 1
            before = machine.memory.read(0x3000, 4)
            assert machine.memory.read(0x3000, 4) == before
        assert min(passes.values()) > 0


def test_a_step_moves_one_vcpu_alone(two_vcpus):
    machine = two_vcpus("again: inc rbx\njmp again")
    with machine.debugger() as debugger:
        debugger.step(1, count=9)
        assert [debugger.registers(vcpu).rbx for vcpu in (0, 1)] == [0, 5]
        assert debugger.pc(0) == machine.labels["again"]


def test_a_breakpoint_by_name():
    code = assemble(COUNT, origin=MIB)
    with (
        build(MachineConfig(code, protocol="flat64", memory=2 * MIB)) as machine,
        machine.debugger(Symbols(code.labels)) as debugger,
    ):
        debugger.break_at("done")
        assert debugger.symbols.describe(debugger.run(SOON).address) == "done"
        with pytest.raises(KeyError):
            debugger.break_at("nowhere")


def test_a_step_in_a_guest_that_waits_can_be_interrupted(guest):
    machine = guest("in al, 0x42\nhlt")
    inside, leave = threading.Event(), threading.Event()

    @machine.on_pio(0x42)
    def slow(event):
        inside.set()
        leave.wait(SOON)

    with machine.debugger() as debugger:

        def interrupt():
            inside.wait(SOON)
            debugger.interrupt()
            leave.set()

        thread = threading.Thread(target=interrupt)
        thread.start()
        assert debugger.step(count=1000).reason in (PAUSE, END)
        thread.join()
