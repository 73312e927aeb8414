"""SSE in ring 0, as far as kernels use it without a library: MXCSR, moves, and the exclusive or that clears.

Intel SDM volume 2; which exceptions there are and when: table 2-21 there (types 1, 4 and 5).
"""

from __future__ import annotations

from functools import partial

from kvmpy.machine.assist.cpu import CR0_EM, CR0_TS, CR4_OSFXSR, GP, NM, UD, Cpu, Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_XMM = 16


def _require_sse(cpu: Cpu) -> None:
    sregs = cpu.sregs
    if cpu.insn.lock or sregs.cr0 & CR0_EM or not sregs.cr4 & CR4_OSFXSR:
        raise Fault(UD)
    if sregs.cr0 & CR0_TS:
        raise Fault(NM)


def _address(cpu: Cpu, aligned: bool) -> int:
    address = cpu.operand_address()
    if aligned and address % _XMM:
        raise Fault(GP, 0)
    return address


def ldmxcsr(cpu: Cpu) -> None:
    """Loads MXCSR."""
    if not cpu.insn.is_memory:
        raise Fault(UD)
    _require_sse(cpu)
    value = int.from_bytes(cpu.read(_address(cpu, False), 4), "little")
    if value & ~cpu.mxcsr_mask:
        raise Fault(GP, 0)
    cpu.mxcsr = value


def stmxcsr(cpu: Cpu) -> None:
    """Stores MXCSR."""
    if not cpu.insn.is_memory:
        raise Fault(UD)
    _require_sse(cpu)
    cpu.write(_address(cpu, False), cpu.mxcsr.to_bytes(4, "little"))


def _load(size: int, cpu: Cpu, *, aligned: bool = False, merges: bool = False) -> None:
    """xmm ← xmm or `size` bytes of memory, the rest 0; from a register, `merges` keeps the rest."""
    _require_sse(cpu)
    insn = cpu.insn
    if insn.is_memory:
        value = cpu.read(_address(cpu, aligned), size)
    else:
        value = cpu.xmm(insn.rm)[:size]
        if merges:
            value += cpu.xmm(insn.reg)[size:]
    cpu.set_xmm(insn.reg, value.ljust(_XMM, b"\0"))


def _store(size: int, cpu: Cpu, *, aligned: bool = False, merges: bool = False) -> None:
    """xmm or `size` bytes of memory ← xmm; into a register, as `_load`."""
    _require_sse(cpu)
    insn = cpu.insn
    value = cpu.xmm(insn.reg)[:size]
    if insn.is_memory:
        cpu.write(_address(cpu, aligned), value)
    else:
        cpu.set_xmm(insn.rm, value + cpu.xmm(insn.rm)[size:] if merges else value.ljust(_XMM, b"\0"))


def _store_nontemporal(cpu: Cpu) -> None:
    if not cpu.insn.is_memory:
        raise Fault(UD)
    _store(_XMM, cpu, aligned=True)


def _from_general(cpu: Cpu) -> None:
    """`movd`, `movq`: xmm ← general register or memory, the rest 0."""
    _require_sse(cpu)
    insn = cpu.insn
    size = 8 if insn.rex_w else 4
    if insn.is_memory:
        value = cpu.read(_address(cpu, False), size)
    else:
        value = cpu.get(insn.rm, size * 8).to_bytes(size, "little")
    cpu.set_xmm(insn.reg, value.ljust(_XMM, b"\0"))


def _to_general(cpu: Cpu) -> None:
    """`movd`, `movq`: general register or memory ← xmm."""
    _require_sse(cpu)
    insn = cpu.insn
    size = 8 if insn.rex_w else 4
    value = cpu.xmm(insn.reg)[:size]
    if insn.is_memory:
        cpu.write(_address(cpu, False), value)
    else:
        cpu.set(insn.rm, size * 8, int.from_bytes(value, "little"))


def _exclusive_or(cpu: Cpu) -> None:
    """`xorps`, `xorpd`, `pxor`."""
    _require_sse(cpu)
    insn = cpu.insn
    other = cpu.read(_address(cpu, True), _XMM) if insn.is_memory else cpu.xmm(insn.rm)
    value = int.from_bytes(cpu.xmm(insn.reg), "little") ^ int.from_bytes(other, "little")
    cpu.set_xmm(insn.reg, value.to_bytes(_XMM, "little"))


_load_any = partial(_load, _XMM)
_store_any = partial(_store, _XMM)
_load_aligned = partial(_load, _XMM, aligned=True)
_store_aligned = partial(_store, _XMM, aligned=True)

SSE: dict[tuple[int, int, int | None], Callable[[Cpu], None]] = {
    (0, 0x0FAE, 2): ldmxcsr,
    (0, 0x0FAE, 3): stmxcsr,
    (0, 0x0F10, None): _load_any,  # movups
    (0, 0x0F11, None): _store_any,
    (0x66, 0x0F10, None): _load_any,  # movupd
    (0x66, 0x0F11, None): _store_any,
    (0xF3, 0x0F10, None): partial(_load, 4, merges=True),  # movss
    (0xF3, 0x0F11, None): partial(_store, 4, merges=True),
    (0xF2, 0x0F10, None): partial(_load, 8, merges=True),  # movsd
    (0xF2, 0x0F11, None): partial(_store, 8, merges=True),
    (0, 0x0F28, None): _load_aligned,  # movaps
    (0, 0x0F29, None): _store_aligned,
    (0x66, 0x0F28, None): _load_aligned,  # movapd
    (0x66, 0x0F29, None): _store_aligned,
    (0, 0x0F2B, None): _store_nontemporal,  # movntps
    (0x66, 0x0F2B, None): _store_nontemporal,  # movntpd
    (0x66, 0x0FE7, None): _store_nontemporal,  # movntdq
    (0x66, 0x0F6F, None): _load_aligned,  # movdqa
    (0x66, 0x0F7F, None): _store_aligned,
    (0xF3, 0x0F6F, None): _load_any,  # movdqu
    (0xF3, 0x0F7F, None): _store_any,
    (0x66, 0x0F6E, None): _from_general,  # movd, movq
    (0x66, 0x0F7E, None): _to_general,
    (0xF3, 0x0F7E, None): partial(_load, 8),  # movq
    (0x66, 0x0FD6, None): partial(_store, 8),
    (0, 0x0F57, None): _exclusive_or,  # xorps
    (0x66, 0x0F57, None): _exclusive_or,  # xorpd
    (0x66, 0x0FEF, None): _exclusive_or,  # pxor
}
"""`Instruction.key` → the function that does it."""
