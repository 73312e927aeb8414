"""The debugger in ring 3, where some hosts tell it nothing: a tiny kernel with a program."""

from __future__ import annotations

import struct

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import DEBUG_EXIT
from kvmpy.machine.script.debugger import BREAKPOINT, END, STEP
from kvmpy.machine.script.symbols import Symbols
from kvmpy.testing.asm import assemble
from kvmpy.units import MIB
from kvmpy.x86.layout import PAGE_TABLES

SOON = 5
IDT, TSS, USER_STACK, KERNEL_STACK = 0x180000, 0x181000, 0x190000, 0x1A0000

# The program ends by #UD; a #DB of its own making is counted in rsi.
SOURCE = """
start:
        lgdt    [gdtr]
        lidt    [idtr]
        mov     ax, 0x28
        ltr     ax
        push    0x1b
        push    USER_STACK
        push    2
        push    0x23
        push    user
enter:  iretq
        align   16
debug:  inc     rsi
        and     qword [rsp + 16], -257
        iretq
        align   16
leave:  mov     eax, ebx
        out     0xf4, al
        hlt
        align   16
user:   mov     ebx, 1
        mov     ecx, 3
again:  inc     ebx
        dec     ecx
        jnz     again
        pushfq
        or      qword [rsp], 0x100
        popfq
        nop
        nop
last:   add     ebx, esi
        push    rbx
        pop     rbx
        ud2
        align   16
gdt:    dq      0, 0, 0x00AF9B000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, TSS_LOW, 0
gdtr:   dw      0x37
        dq      gdt
idtr:   dw      0x1ff
        dq      IDT
"""


@pytest.fixture
def machine():
    low = 0x67 | (TSS & 0xFFFFFF) << 16 | 0x89 << 40
    code = assemble(SOURCE, origin=MIB, USER_STACK=USER_STACK, IDT=IDT, TSS_LOW=low)
    with build(MachineConfig(code, protocol="flat64", memory=2 * MIB, debug_exit=0xF4)) as machine:
        memory = machine.memory
        for table, entries in ((PAGE_TABLES, 1), (PAGE_TABLES + 0x1000, 4), (PAGE_TABLES + 0x2000, 4 * 512)):
            for entry in range(table, table + 8 * entries, 8):
                memory.write(entry, bytes([memory.read(entry, 1)[0] | 4]))
        for vector in range(32):
            at = code.labels["debug" if vector == 1 else "leave"]
            memory.write(IDT + 16 * vector, struct.pack("<HHHHQ", at & 0xFFFF, 0x10, 0xEE00, at >> 16, 0))
        memory.write(TSS + 4, struct.pack("<Q", KERNEL_STACK))
        machine.labels = code.labels
        yield machine


def in_the_kernel(machine):
    """A debugger of the machine, with the kernel ready to enter the program: before that it has no #DB handler."""
    debugger = machine.debugger(Symbols(machine.labels))
    ready = debugger.break_at("enter")
    assert debugger.run(SOON).reason == BREAKPOINT
    ready.remove()
    return debugger


# ebx at the end: 1, and 3 rounds, and one #DB of its own.
LEFT_WITH = 5


def test_the_program_runs_without_a_debugger(machine):
    outcome = machine.run(SOON)
    assert (outcome.reason, outcome.status >> 1) == (DEBUG_EXIT, LEFT_WITH)


def test_a_breakpoint_in_ring_3_is_hit_and_the_program_sees_nothing_of_it(machine):
    with in_the_kernel(machine) as debugger:
        breakpoint = debugger.break_at("again")
        seen = []
        while (stop := debugger.run(SOON)).reason == BREAKPOINT:
            assert stop.address == machine.labels["again"]
            registers = debugger.registers()
            assert (registers.ring, registers.cs, registers.rsp) == (3, 0x23, USER_STACK)
            seen.append((registers.ebx, registers.ecx))
        assert seen == [(1, 3), (2, 2), (3, 1)]
        assert breakpoint.hits == 3
        assert (stop.reason, stop.outcome.status >> 1) == (END, LEFT_WITH)


def test_steps_in_ring_3_go_through_every_instruction(machine):
    with in_the_kernel(machine) as debugger:
        debugger.break_at("user")
        assert debugger.run(SOON).reason == BREAKPOINT
        names = []
        while len(names) < 8:
            stop = debugger.step()
            assert stop.reason == STEP
            names.append((stop.address - machine.labels["user"], debugger.registers().ebx))
        assert names == [(5, 1), (10, 1), (12, 2), (14, 2), (10, 2), (12, 3), (14, 3), (10, 3)]
        assert not debugger.registers().rflags & 1 << 8
        assert debugger.run(SOON).outcome.status >> 1 == LEFT_WITH


def test_memory_and_code_are_as_they_were(machine):
    size = machine.labels["gdt"] - MIB
    before = machine.memory.read(MIB, size)
    with in_the_kernel(machine) as debugger:
        debugger.break_at("last")
        assert debugger.run(SOON).reason == BREAKPOINT
        assert machine.memory.read(MIB, size) == before
        assert debugger.registers().rsi == 1


def test_a_step_from_ring_0_to_ring_3_stops_at_the_first_instruction(machine):
    with machine.debugger(Symbols(machine.labels)) as debugger:
        debugger.break_at("enter")
        debugger.run(SOON)
        assert debugger.step().address == machine.labels["user"]
        assert (debugger.registers().ring, debugger.registers().ebx) == (3, 0)
        assert debugger.step().address == machine.labels["user"] + 5
        assert debugger.run(SOON).outcome.status >> 1 == LEFT_WITH


def test_a_step_into_a_fault_of_the_program_comes_to_the_kernel_or_its_end(machine):
    with in_the_kernel(machine) as debugger:
        debugger.break_at("last")
        assert debugger.run(SOON).reason == BREAKPOINT
        stop = debugger.last
        for _ in range(20):
            if stop.reason == END:
                break
            stop = debugger.step()
        assert stop.reason == END
        assert stop.outcome.status >> 1 == LEFT_WITH
