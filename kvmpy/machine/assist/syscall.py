"""SYSCALL on hosts that leave it half done, for guests that know nothing of it.

Where KVM emulates ring 0, the host's SYSCALL sets RCX, R11 and RIP and applies IA32_FMASK to RFLAGS, but stays in
ring 3: the guest takes a page fault at IA32_LSTAR.  The fault brings it to ring 0, and all else is as SYSCALL
leaves it: GS is not swapped, and interrupts are off.  So IDT gate 14 is pointed at a trampoline that tells such a
fault from others and goes to LSTAR with the user's stack pointer; other faults go on to the guest's handler.

What tells it: the fault is at LSTAR, from ring 3, with RFLAGS.IF clear.  The last is so because kernels have IF in
FMASK; a program that merely jumps to LSTAR, with an R11 of its making, has IF set and gets its fault.  FMASK's
other bits need no care: the host has cleared them too.  SS is null and not STAR's selector, which ring 0 in
64-bit mode allows.

The trampoline lies in padding between functions of the guest's own text, in or near the page of LSTAR, which is
mapped wherever LSTAR is (Linux maps its entry code only, in the page tables that user space runs on).  It
describes itself: all that the shim knows is read back from the gate and the code, so several vCPUs
share it, and it comes along in a snapshot.  A guest in which anything looks unexpected is left alone.
"""

from __future__ import annotations

import struct
import threading

from kvmpy.errors import GuestMemoryError
from kvmpy.kvm.capabilities import KVM_CAP_X86_USER_SPACE_MSR
from kvmpy.kvm.vm import KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_FILTER_WRITE, MsrRange
from kvmpy.x86.paging import EFER_LMA, walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vcpu, Vm
    from kvmpy.kvm.structs import Sregs
    from kvmpy.memory import GuestMemory

IA32_LSTAR = 0xC0000082

_PAGE = 0x1000
_VECTOR = 14

# A 64-bit gate (SDM volume 3, 6.14.1): offset 15:0, selector, IST, type and rights, offset 31:16, offset 63:32.
_GATE = struct.Struct("<HHBBHII")
_PRESENT_RING_0 = 0x80
_GATE_TYPES = (0x0E, 0x0F)  # interrupt, trap

#   0  cmpq   $LSTAR, 8(%rsp)      the faulting RIP, under the error code
#   9  jne    35
#  11  testb  $3, 16(%rsp)         from ring 3?
#  16  je     35
#  18  testb  $2, 25(%rsp)         RFLAGS.IF
#  23  jne    35
#  25  movq   32(%rsp), %rsp       the user's stack pointer, as after SYSCALL
#  30  jmp    LSTAR
#  35  jmp    HANDLER
_TRAMPOLINE = struct.Struct("<5si21sBiBi")
_COMPARE = bytes.fromhex("48817c2408")
_TESTS = bytes.fromhex("7518 f644241003 7411 f644241902 750a 488b642420")
_LSTAR_JUMP_END = 35
_HANDLER_JUMP_END = 40
_JUMP = 0xE9

_PADDING = b"\xcc"
_ALIGNMENT = 16
# How far from LSTAR's page padding is looked for, in pages.
_REACH = 64


def install(vm: Vm) -> None:
    """Has KVM leave the guest's writes of IA32_LSTAR to us: KVM_EXIT_X86_WRMSR; `KvmError` when it cannot."""
    vm.enable_cap(KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER)
    vm.set_msr_filter([MsrRange(IA32_LSTAR, 1, (IA32_LSTAR,), KVM_MSR_FILTER_WRITE)])


class SyscallShim:
    """The trampolines of one machine.

    `note` says in one line what the last write of IA32_LSTAR led to.  Any vCPU's thread may call the methods.
    """

    __slots__ = ("_lock", "_memory", "note")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self.note = "the guest has not set IA32_LSTAR"

    def on_wrmsr(self, vcpu: Vcpu, value: int) -> None:
        """Answers a KVM_EXIT_X86_WRMSR for IA32_LSTAR: sets it, or has the guest fault, and places the trampoline."""
        if not vcpu.set_msr(IA32_LSTAR, value):
            vcpu.exit.msr.fault()
            return
        self.place(vcpu, value)

    def place(self, vcpu: Vcpu, lstar: int) -> bool:
        """Points gate 14 of the IDT in use at a trampoline for `lstar`; whether it does now.

        Needs to be done again only when the guest has changed LSTAR, its IDT, or the gate.
        """
        with self._lock:
            try:
                self.note = self._place(_Tables(self._memory, vcpu.sregs()), lstar)
            except (_Unexpected, GuestMemoryError) as reason:
                self.note = f"no SYSCALL for this guest: {reason}"
                return False
        return True

    def _place(self, tables: _Tables, lstar: int) -> str:
        if not -(1 << 31) <= _signed(lstar) < 1 << 31:
            raise _Unexpected("IA32_LSTAR is not in the first or last 2 GiB")
        tables.code(lstar)
        gate, handler, fields = tables.page_fault_gate()
        # Ours already, for this LSTAR or an earlier one: the guest's own handler is the one behind it.
        known = _parse(tables.bytes_at(handler, _TRAMPOLINE.size), handler)
        if known is not None:
            old_lstar, handler = known
            if old_lstar == lstar:
                return "SYSCALL has its trampoline"
        tables.code(handler)
        place, physical = _find_place(tables, lstar, handler)
        self._memory.write(physical, _build(place, lstar, handler))
        # The trampoline is whole before the gate leads there.
        self._memory.write(gate, _pack_gate(place, fields))
        return f"SYSCALL goes through a trampoline at {place:#x}"


class _Unexpected(Exception):
    """The guest does not look as the shim wants it; the text says where."""


class _Tables:
    """The guest's page tables and IDT as one vCPU sees them now."""

    __slots__ = ("_memory", "_sregs")

    def __init__(self, memory: GuestMemory, sregs: Sregs) -> None:
        if not (sregs.efer & EFER_LMA and sregs.cs.l):
            raise _Unexpected("it is not in 64-bit mode")
        self._memory = memory
        self._sregs = sregs

    def physical(self, linear: int) -> int | None:
        """Where `linear` is, or None where nothing is mapped."""
        sregs = self._sregs
        found = walk(self._memory, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, linear)
        return None if found is None else found.physical

    def code(self, linear: int) -> int:
        """Where the supervisor code at `linear` is."""
        sregs = self._sregs
        found = walk(self._memory, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, linear)
        if found is None or found.no_execute or found.user:
            raise _Unexpected(f"no code of the kernel is at {linear:#x}")
        return found.physical

    def bytes_at(self, linear: int, length: int) -> bytes:
        """`length` bytes of code, or as many as its page has."""
        physical = self.code(linear)
        return self._memory.read(physical, min(length, _PAGE - physical % _PAGE))

    def page_fault_gate(self) -> tuple[int, int, tuple[int, int, int]]:
        """Gate 14: where it is, its handler, and (selector, IST, type and rights)."""
        idt = self._sregs.idt
        linear = idt.base + _VECTOR * _GATE.size
        physical = self.physical(linear)
        if idt.limit < (_VECTOR + 1) * _GATE.size - 1 or physical is None or linear % _PAGE > _PAGE - _GATE.size:
            raise _Unexpected("its IDT has no gate 14")
        low, selector, stack, rights, middle, high, _ = _GATE.unpack(self._memory.read(physical, _GATE.size))
        if rights & 0xF0 != _PRESENT_RING_0 or rights & 0xF not in _GATE_TYPES or selector != self._sregs.cs.selector:
            raise _Unexpected("IDT gate 14 is not a gate into its kernel")
        return physical, high << 32 | middle << 16 | low, (selector, stack, rights)


def _find_place(tables: _Tables, lstar: int, handler: int) -> tuple[int, int]:
    """The linear and physical address for a trampoline: one that is there already, or padding, near `lstar`."""
    page = lstar & -_PAGE
    # LSTAR's own page, then its neighbours in turn.
    for step in range(2 * _REACH + 1):
        linear = page + (step + 1) // 2 * (_PAGE if step % 2 else -_PAGE) & 0xFFFFFFFFFFFFFFFF
        try:
            physical = tables.code(linear)
            text = tables.bytes_at(linear, _PAGE)
        except (_Unexpected, GuestMemoryError):
            continue
        offset = _find_trampoline(text, linear, lstar, handler)
        if offset is None:
            offset = find_padding(text, _TRAMPOLINE.size)
        if offset is not None and _reaches(linear + offset, lstar, handler):
            return linear + offset, physical + offset
    raise _Unexpected(f"no padding for a trampoline within {_REACH} pages of {lstar:#x}")


def _find_trampoline(text: bytes, linear: int, lstar: int, handler: int) -> int | None:
    offset = text.find(_COMPARE)
    while offset >= 0:
        if _parse(text[offset : offset + _TRAMPOLINE.size], linear + offset) == (lstar, handler):
            return offset
        offset = text.find(_COMPARE, offset + 1)
    return None


def find_padding(text: bytes, size: int) -> int | None:
    """The offset, a multiple of 16, of `size` bytes in a run of `int3` that no instruction's operand begins, or None.

    Compilers and linkers fill gaps between functions with `int3`; it runs only if something jumps into a gap.  The
    run reaches 8 bytes further to the left, so that its start cannot be an immediate that happens to be 0xcc's.
    """
    margin = 8
    start = text.find(_PADDING * (margin + size))
    while start >= 0:
        end = start
        while end < len(text) and text[end] == _PADDING[0]:
            end += 1
        offset = (start + margin + _ALIGNMENT - 1) & -_ALIGNMENT
        if offset + size <= end:
            return offset
        start = text.find(_PADDING * (margin + size), end)
    return None


def _build(place: int, lstar: int, handler: int) -> bytes:
    to_lstar = _signed(lstar - (place + _LSTAR_JUMP_END))
    to_handler = _signed(handler - (place + _HANDLER_JUMP_END))
    return _TRAMPOLINE.pack(_COMPARE, _signed(lstar), _TESTS, _JUMP, to_lstar, _JUMP, to_handler)


def _parse(code: bytes, place: int) -> tuple[int, int] | None:
    """(LSTAR, handler) of the trampoline that `code` is, when it lies at `place`; None when it is none."""
    if len(code) != _TRAMPOLINE.size:
        return None
    compare, lstar, tests, first, to_lstar, second, to_handler = _TRAMPOLINE.unpack(code)
    if (compare, tests, first, second) != (_COMPARE, _TESTS, _JUMP, _JUMP):
        return None
    if _signed(place + _LSTAR_JUMP_END + to_lstar) != lstar:
        return None
    return lstar & 0xFFFFFFFFFFFFFFFF, place + _HANDLER_JUMP_END + to_handler & 0xFFFFFFFFFFFFFFFF


def _reaches(place: int, *targets: int) -> bool:
    return all(abs(_signed(target - place)) < (1 << 31) - _TRAMPOLINE.size for target in targets)


def _pack_gate(offset: int, fields: tuple[int, int, int]) -> bytes:
    return _GATE.pack(offset & 0xFFFF, *fields, offset >> 16 & 0xFFFF, offset >> 32, 0)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value
