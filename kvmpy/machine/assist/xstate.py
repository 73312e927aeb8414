"""XSAVE and XRSTOR in ring 0, in the standard format, between guest memory and what KVM keeps of the vCPU.

Intel SDM volume 1, chapter 13.  KVM's own copy (KVM_GET_XSAVE) has that format too, so components move as they are.
"""

from __future__ import annotations

from kvmpy.machine.assist.cpu import CR0_TS, CR4_OSXSAVE, GP, NM, UD, Cpu, Fault, UnfinishedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RAX, RCX, RDX = range(3)

_X87 = 1 << 0
_SSE = 1 << 1
_AVX = 1 << 2

_ALIGNMENT = 64
_HEADER = 512
_EXTENDED = 576
_XSTATE_BV = slice(_HEADER, _HEADER + 8)
_COMPACTED = 1 << 63
_MXCSR = slice(24, 32)  # with its mask

_CPUID_XSTATE = 0xD
_PAGE = 0x1000


def _xcr0(cpu: Cpu) -> int:
    # struct kvm_xcrs: two words, then a register's number, padding and value.
    return int.from_bytes(cpu.vcpu.xcrs()[16:24], "little")


def xgetbv(cpu: Cpu) -> None:
    """XCR0."""
    if cpu.insn.lock or not cpu.sregs.cr4 & CR4_OSXSAVE:
        raise Fault(UD)
    if cpu.get(RCX, 32):
        raise Fault(GP, 0)
    value = _xcr0(cpu)
    cpu.set(RAX, 32, value)
    cpu.set(RDX, 32, value >> 32)


def _begin(cpu: Cpu) -> tuple[int, int]:
    """The checks that all forms share; the operand's address and the components that are asked for."""
    insn, sregs = cpu.insn, cpu.sregs
    if insn.lock or not insn.is_memory or not sregs.cr4 & CR4_OSXSAVE:
        raise Fault(UD)
    if sregs.cr0 & CR0_TS:
        raise Fault(NM)
    address = cpu.operand_address()
    if address % _ALIGNMENT:
        raise Fault(GP, 0)
    return address, _xcr0(cpu) & (cpu.get(RDX, 32) << 32 | cpu.get(RAX, 32))


def _pieces(cpu: Cpu, components: int) -> Iterator[slice]:
    """Where the state of each of `components` lies in the area, MXCSR not included."""
    if components & _X87:
        yield slice(0, 24)
        yield slice(32, 160)
    if components & _SSE:
        yield slice(160, 416)
    if components < _AVX:
        return
    for entry in cpu.vcpu.cpuid():
        if entry.function == _CPUID_XSTATE and 2 <= entry.index < 63 and components >> entry.index & 1:
            start, size = entry.ebx, entry.eax
            if start < _EXTENDED or start + size > _PAGE:
                raise UnfinishedError
            yield slice(start, start + size)


def xsave(cpu: Cpu) -> None:
    """`xsave`, and `xsaveopt`, which may save what has not changed too."""
    address, asked = _begin(cpu)
    area = cpu.xsave_area
    pieces = list(_pieces(cpu, asked))
    if asked & (_SSE | _AVX):
        pieces.append(_MXCSR)
    old = int.from_bytes(cpu.read(address + _HEADER, 8), "little")
    in_use = int.from_bytes(area[_XSTATE_BV], "little")
    for piece in pieces:
        cpu.check_write(address + piece.start, piece.stop - piece.start)
    cpu.check_write(address + _HEADER, 8)
    for piece in pieces:
        cpu.write(address + piece.start, bytes(area[piece]))
    cpu.write(address + _HEADER, (old & ~asked | in_use & asked).to_bytes(8, "little"))


def xrstor(cpu: Cpu) -> None:
    """`xrstor`; the compacted format is left unfinished."""
    address, asked = _begin(cpu)
    header = cpu.read(address + _HEADER, 24)
    present, compaction = int.from_bytes(header[:8], "little"), int.from_bytes(header[8:16], "little")
    if compaction & _COMPACTED:
        raise UnfinishedError
    if present & ~_xcr0(cpu) or compaction or any(header[16:]):
        raise Fault(GP, 0)
    area = bytearray(cpu.xsave_area)
    for piece in _pieces(cpu, asked & present):
        area[piece] = cpu.read(address + piece.start, piece.stop - piece.start)
    in_use = int.from_bytes(area[_XSTATE_BV], "little") & ~asked | asked & present
    if asked & (_SSE | _AVX):
        mxcsr = int.from_bytes(cpu.read(address + _MXCSR.start, 4), "little")
        if mxcsr & ~cpu.mxcsr_mask:
            raise Fault(GP, 0)
        area[_MXCSR.start : _MXCSR.start + 4] = mxcsr.to_bytes(4, "little")
        # KVM takes MXCSR only together with the XMM registers.
        if not in_use & _SSE:
            area[160:416] = bytes(256)
            in_use |= _SSE
    area[_XSTATE_BV] = in_use.to_bytes(8, "little")
    cpu.set_xsave_area(area)


XSTATE: dict[tuple[int, int, int | None], Callable[[Cpu], None]] = {
    (0, 0x0F01, 0xD0): xgetbv,
    (0, 0x0FAE, 4): xsave,
    (0, 0x0FAE, 5): xrstor,
    (0, 0x0FAE, 6): xsave,  # xsaveopt
}
"""`Instruction.key` → the function that does it."""
