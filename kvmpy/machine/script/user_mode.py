"""Breakpoints and steps in ring 3 on hosts whose KVM emulates ring 0: there no exit tells of them.

Such a KVM lets the processor run ring 3, and hands each exception of it to the guest: INT1 and the trap flag come to
the guest's own #DB handler.  So the debugger has a breakpoint of its own on that handler's first instruction, and takes
the delivery back: nothing of the handler has run, and its stack frame has all that the exception had.

64-bit guests only, and once they have a #DB handler: it is looked up whenever the guest is let run.  A program that
steps through itself with the trap flag, and onto a breakpoint, loses that step.

Intel SDM volume 3, 3.4.5 (descriptors), 6.14 (64-bit interrupt handling).
"""

from __future__ import annotations

from kvmpy.machine.script.memory import NotMappedError
from kvmpy.x86.cpustate import EFER_LMA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vcpu
    from kvmpy.kvm.structs import Segment
    from kvmpy.machine.script.memory import VirtualMemory
    from kvmpy.machine.script.registers import Registers

RFLAGS_TF = 1 << 8

_DB = 1
_GATE_SIZE = 16
_GATE_PRESENT = 1 << 47
_USER = 3
_SELECTOR_IN_LDT = 1 << 2

_IRETQ = b"\x48\xcf"
_SYSRETQ = b"\x48\x0f\x07"


def debug_handler(memory: VirtualMemory, registers: Registers) -> int | None:
    """The address of the guest's #DB handler, or None while it has none that is mapped."""
    if not registers.efer & EFER_LMA or registers.idt_limit < (_DB + 1) * _GATE_SIZE - 1:
        return None
    try:
        gate = memory.read_int(registers.idt_base + _DB * _GATE_SIZE, _GATE_SIZE)
        address = gate & 0xFFFF | gate >> 32 & 0xFFFFFFFF0000
        address |= (gate >> 64 & 0xFFFFFFFF) << 32 & ~0xFFFFFFFF
        memory.physical(address)
    except NotMappedError:
        return None
    return address if gate & _GATE_PRESENT else None


def interrupted(memory: VirtualMemory, registers: Registers) -> int | None:
    """Of a vCPU at its handler's first instruction: where in ring 3 it was; None where it was in ring 0."""
    try:
        rip, cs = memory.read_int(registers.rsp), memory.read_int(registers.rsp + 8)
    except NotMappedError:
        return None
    return rip if cs & 3 == _USER else None


def entered_next(memory: VirtualMemory, registers: Registers) -> int | None:
    """Where in ring 3 the next instruction of ring 0 leads, when it is an IRET or SYSRET to 64-bit code; else None."""
    if registers.code_bits != 64 or registers.ring != 0:
        return None
    try:
        code = memory.read(registers.rip, 2)
        if code == _IRETQ:
            target = interrupted(memory, registers)
        else:
            target = registers.rcx if code + memory.read(registers.rip + 2, 1) == _SYSRETQ else None
        if target is not None:
            memory.physical(target)
    except NotMappedError:
        return None
    return target


def take_back(vcpu: Vcpu, memory: VirtualMemory, registers: Registers, rip: int) -> None:
    """Puts a vCPU at its handler's first instruction back to where it was in ring 3, at `rip`, without the trap flag.

    `NotMappedError` or `ValueError`, with nothing changed, for a frame that is none.
    """
    _, cs, rflags, rsp, ss = (memory.read_int(registers.rsp + 8 * index) for index in range(5))
    regs, sregs = vcpu.regs(), vcpu.sregs()
    _load(sregs.cs, cs, memory, registers)
    _load(sregs.ss, ss, memory, registers)
    regs.rip, regs.rsp, regs.rflags = rip, rsp, rflags & ~RFLAGS_TF
    vcpu.set_sregs(sregs)
    vcpu.set_regs(regs)


def set_trap_flag(vcpu: Vcpu) -> None:
    """Has a vCPU in ring 3 take #DB after its next instruction."""
    regs = vcpu.regs()
    regs.rflags |= RFLAGS_TF
    vcpu.set_regs(regs)


def _load(segment: Segment, selector: int, memory: VirtualMemory, registers: Registers) -> None:
    """Loads a segment register of ring 3 as IRET does."""
    if selector & 3 != _USER or selector & _SELECTOR_IN_LDT or selector | 7 > registers.gdt_limit:
        raise ValueError(f"{selector:#x} is no selector of ring 3")
    descriptor = memory.read_int(registers.gdt_base + (selector & ~7))
    segment.selector = selector & 0xFFFF
    segment.base = descriptor >> 16 & 0xFFFFFF | descriptor >> 56 << 24
    segment.limit = descriptor & 0xFFFF | descriptor >> 48 & 0xF << 16
    segment.type = descriptor >> 40 & 0xF
    segment.s = descriptor >> 44 & 1
    segment.dpl = descriptor >> 45 & 3
    segment.present = descriptor >> 47 & 1
    segment.avl = descriptor >> 52 & 1
    segment.l = descriptor >> 53 & 1
    segment.db = descriptor >> 54 & 1
    segment.g = descriptor >> 55 & 1
    segment.unusable = 0
    if segment.g:
        segment.limit = segment.limit << 12 | 0xFFF
