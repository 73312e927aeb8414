"""What each instruction does that KVM's emulator leaves undone: one small function each, in `INSTRUCTIONS`.

A function gets the `Cpu` with RIP still on the instruction, and changes registers and memory; `finish` then moves
RIP on.  It raises `Fault` for an exception.  Intel SDM volume 2 has them all.
"""

from __future__ import annotations

import threading

from kvmpy.machine.assist.cpu import (
    BP,
    CR0_MP,
    CR0_NE,
    CR0_TS,
    GP,
    MF,
    NM,
    RFLAGS_AC,
    RFLAGS_ARITHMETIC,
    RFLAGS_ZF,
    UD,
    Cpu,
    Fault,
)
from kvmpy.machine.assist.sse import SSE
from kvmpy.machine.assist.x87 import X87
from kvmpy.machine.assist.xstate import XSTATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RAX, RCX, RDX, RBX = range(4)

_FSW_ES = 1 << 7

# Makes two vCPUs' compare-and-exchange atomic towards each other.
_EXCHANGE = threading.Lock()


class Trap(Fault):
    """An exception that comes after the instruction: RIP is behind it."""


def int3(cpu: Cpu) -> None:
    """Breakpoint."""
    raise Trap(BP)


def fwait(cpu: Cpu) -> None:
    """Waits for pending x87 exceptions, of which there can be one that is not yet reported."""
    cr0 = cpu.sregs.cr0
    if cr0 & CR0_MP and cr0 & CR0_TS:
        raise Fault(NM)
    # Without CR0.NE the PC reports it by IRQ 13, which KVM does not have.
    if cr0 & CR0_NE and cpu.fsw & _FSW_ES:
        raise Fault(MF)


def popcnt(cpu: Cpu) -> None:
    """Counts ones."""
    insn = cpu.insn
    if insn.lock:
        raise Fault(UD)
    bits = insn.operand_size
    value = int.from_bytes(cpu.read(cpu.operand_address(), bits // 8), "little") if insn.is_memory else 0
    if not insn.is_memory:
        value = cpu.get(insn.rm, bits)
    cpu.set(insn.reg, bits, value.bit_count())
    cpu.regs.rflags = cpu.regs.rflags & ~RFLAGS_ARITHMETIC | (0 if value else RFLAGS_ZF)


def clac(cpu: Cpu) -> None:
    """Clears RFLAGS.AC: supervisor code may not touch user pages under SMAP."""
    _require_ring_0(cpu)
    cpu.regs.rflags &= ~RFLAGS_AC


def stac(cpu: Cpu) -> None:
    """Sets RFLAGS.AC."""
    _require_ring_0(cpu)
    cpu.regs.rflags |= RFLAGS_AC


def _require_ring_0(cpu: Cpu) -> None:
    if cpu.cpl or cpu.insn.lock:
        raise Fault(UD)


def cmpxchg8b_16b(cpu: Cpu) -> None:
    """Compares RDX:RAX with memory and puts RCX:RBX there when they are equal; EDX:EAX and so on without REX.W.

    It is atomic towards other instructions that are finished here, and not towards those that the processor runs.
    """
    insn = cpu.insn
    if not insn.is_memory:
        raise Fault(UD)
    half = 64 if insn.rex_w else 32
    size = half // 4
    address = cpu.operand_address()
    if insn.rex_w and address % size:
        raise Fault(GP, 0)
    with _EXCHANGE:
        cpu.check_write(address, size)
        old = int.from_bytes(cpu.read(address, size), "little")
        if old == cpu.get(RDX, half) << half | cpu.get(RAX, half):
            new = cpu.get(RCX, half) << half | cpu.get(RBX, half)
            cpu.write(address, new.to_bytes(size, "little"))
            cpu.regs.rflags |= RFLAGS_ZF
            return
    cpu.set(RAX, half, old)
    cpu.set(RDX, half, old >> half)
    cpu.regs.rflags &= ~RFLAGS_ZF


INSTRUCTIONS: dict[tuple[int, int, int | None], Callable[[Cpu], None]] = {
    (0, 0xCC, None): int3,
    (0, 0x9B, None): fwait,
    (0xF3, 0x0FB8, None): popcnt,
    (0, 0x0F01, 0xCA): clac,
    (0, 0x0F01, 0xCB): stac,
    (0, 0x0FC7, 1): cmpxchg8b_16b,
    **SSE,
    **XSTATE,
    **X87,
}
"""`Instruction.key` → the function that does it."""
