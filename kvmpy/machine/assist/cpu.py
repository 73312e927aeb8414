"""A vCPU while one of its instructions is finished: registers and memory as the instruction sees them, and faults.

Accessed and dirty bits of the page tables are not set, and what is written is not atomic towards other vCPUs.
Intel SDM volume 3, chapters 4 (paging) and 6 (exceptions).
"""

from __future__ import annotations

from kvmpy.errors import GuestMemoryError
from kvmpy.x86.paging import walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vcpu
    from kvmpy.kvm.structs import Regs, Sregs
    from kvmpy.machine.assist.decode import Instruction
    from kvmpy.memory import GuestMemory

# Exceptions.
DB = 1
BP = 3
UD = 6
NM = 7
SS = 12
GP = 13
PF = 14
MF = 16

RFLAGS_ZF = 1 << 6
RFLAGS_TF = 1 << 8
RFLAGS_RF = 1 << 16
RFLAGS_AC = 1 << 18
RFLAGS_VM = 1 << 17
RFLAGS_ARITHMETIC = 0x8D5  # CF PF AF ZF SF OF

CR0_PE = 1 << 0
CR0_MP = 1 << 1
CR0_EM = 1 << 2
CR0_TS = 1 << 3
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR4_OSFXSR = 1 << 9
CR4_OSXSAVE = 1 << 18
CR4_SMAP = 1 << 21
EFER_LMA = 1 << 10

PF_PRESENT = 1 << 0
PF_WRITE = 1 << 1
PF_USER = 1 << 2

DR6_BS = 1 << 14

_PAGE = 0x1000

# The order in which instructions number the registers is not the order of struct kvm_regs.
NUMBERED = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))

# The XSAVE area (SDM volume 1, 13.4): its legacy part, and the header's bits for what is not in its initial state.
_FSW = 2
_MXCSR = 24
_XMM0 = 160
_XSTATE_BV = 512
_XSTATE_SSE = 1 << 1


class Fault(Exception):
    """The instruction ends with an exception: `vector`, its error code or None, and CR2 for a page fault."""

    def __init__(self, vector: int, error_code: int | None = None, address: int | None = None) -> None:
        super().__init__(vector)
        self.vector = vector
        self.error_code = error_code
        self.address = address


class UnfinishedError(Exception):
    """A form of an instruction that cannot be finished here."""


class Cpu:
    """The vCPU's registers, read once; what is changed is written back by `commit`."""

    __slots__ = ("_area", "_area_changed", "insn", "memory", "regs", "sregs", "vcpu")

    def __init__(self, vcpu: Vcpu, memory: GuestMemory) -> None:
        self.vcpu = vcpu
        self.memory = memory
        self.regs: Regs = vcpu.regs()
        self.sregs: Sregs = vcpu.sregs()
        self.insn: Instruction
        self._area: bytearray | None = None
        self._area_changed = False

    @property
    def bits(self) -> int:
        """The width of the code segment: 16, 32 or 64."""
        sregs = self.sregs
        if sregs.efer & EFER_LMA and sregs.cs.l:
            return 64
        return 32 if sregs.cs.db else 16

    @property
    def cpl(self) -> int:
        """The privilege level, 0 to 3."""
        if not self.sregs.cr0 & CR0_PE:
            return 0
        return 3 if self.regs.rflags & RFLAGS_VM else self.sregs.ss.dpl

    def commit(self) -> None:
        """Writes the registers back.  This also takes back the #UD that KVM has queued beside its error."""
        if self._area is not None and self._area_changed:
            self.vcpu.set_xsave(bytes(self._area))
        self.vcpu.set_regs(self.regs)

    def inject(self, fault: Fault) -> None:
        """Has the guest take an exception at its next instruction; after `commit`."""
        if fault.address is not None:
            self.sregs.cr2 = fault.address
            self.vcpu.set_sregs(self.sregs)
        events = self.vcpu.events()
        events.exception.injected = 1
        events.exception.pending = 0
        events.exception.nr = fault.vector
        events.exception.has_error_code = fault.error_code is not None
        events.exception.error_code = fault.error_code or 0
        self.vcpu.set_events(events)

    def end_shadow(self) -> None:
        """Ends the shadow in which `sti` and `mov ss` hold interrupts back: it is one instruction long."""
        events = self.vcpu.events()
        if events.interrupt.shadow:
            events.interrupt.shadow = 0
            self.vcpu.set_events(events)

    # --- general registers

    def get(self, number: int, bits: int) -> int:
        """The low `bits` of a general register, numbered as instructions do."""
        return int(getattr(self.regs, NUMBERED[number])) & ((1 << bits) - 1)

    def set(self, number: int, bits: int, value: int) -> None:
        """Sets a general register: 32 bits clear the upper half, 16 leave the rest."""
        name = NUMBERED[number]
        if bits < 32:
            kept = int(getattr(self.regs, name)) >> bits << bits
            value = kept | value & ((1 << bits) - 1)
        setattr(self.regs, name, value & ((1 << bits) - 1) if bits >= 32 else value)

    # --- x87 and SSE

    @property
    def xsave_area(self) -> bytearray:
        """The XSAVE area as KVM has it, in the standard format; to be changed with `set_xsave_area`."""
        if self._area is None:
            self._area = bytearray(self.vcpu.xsave())
        return self._area

    def set_xsave_area(self, area: bytearray) -> None:
        """Replaces the XSAVE area; components whose bit in its header is clear get their initial state."""
        self._area = area
        self._area_changed = True

    @property
    def fsw(self) -> int:
        """The x87 status word."""
        return int.from_bytes(self.xsave_area[_FSW : _FSW + 2], "little")

    @property
    def mxcsr(self) -> int:
        """SSE's control and status register."""
        return int.from_bytes(self.xsave_area[_MXCSR : _MXCSR + 4], "little")

    @mxcsr.setter
    def mxcsr(self, value: int) -> None:
        self.xsave_area[_MXCSR : _MXCSR + 4] = value.to_bytes(4, "little")
        self._mark_sse()

    @property
    def mxcsr_mask(self) -> int:
        """The bits that MXCSR may have; 0xffbf where the processor does not say (SDM volume 1, 11.6.6)."""
        return int.from_bytes(self.xsave_area[_MXCSR + 4 : _MXCSR + 8], "little") or 0xFFBF

    def xmm(self, number: int) -> bytes:
        """An XMM register's 16 bytes."""
        start = _XMM0 + 16 * number
        return bytes(self.xsave_area[start : start + 16])

    def set_xmm(self, number: int, value: bytes) -> None:
        """Sets an XMM register; the upper part of its YMM register stays."""
        start = _XMM0 + 16 * number
        self.xsave_area[start : start + 16] = value
        self._mark_sse()

    def _mark_sse(self) -> None:
        # Without its bit in the header the state counts as initial, and what was written is not looked at.
        self.xsave_area[_XSTATE_BV] |= _XSTATE_SSE
        self._area_changed = True

    # --- memory

    def operand_address(self) -> int:
        """The linear address of the instruction's memory operand."""
        insn = self.insn
        address = insn.displacement
        if insn.rip_relative:
            address += self.regs.rip + insn.length
        if insn.base is not None:
            address += self.get(insn.base, 64)
        if insn.index is not None:
            address += self.get(insn.index, 64) << insn.scale
        address &= (1 << insn.address_size) - 1
        if self.bits != 64:
            return (address + int(getattr(self.sregs, insn.segment).base)) & 0xFFFFFFFF
        if insn.segment in ("fs", "gs"):
            address += int(getattr(self.sregs, insn.segment).base)
        return address & 0xFFFFFFFFFFFFFFFF

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes at a linear address, or the `Fault` that a load has; `GuestMemoryError` where no RAM is."""
        return b"".join(self.memory.read(*piece) for piece in self._pieces(address, length, write=False))

    def write(self, address: int, data: bytes) -> None:
        """Stores at a linear address; nothing is written when a part of it faults or is no RAM."""
        pieces = self._pieces(address, len(data), write=True)
        for physical, length in pieces:
            self.memory.region_of(physical, length)
        start = 0
        for physical, length in pieces:
            self.memory.write(physical, data[start : start + length])
            start += length

    def check_write(self, address: int, length: int) -> None:
        """Raises what a store would raise."""
        for physical, size in self._pieces(address, length, write=True):
            self.memory.region_of(physical, size)

    def _pieces(self, address: int, length: int, *, write: bool) -> list[tuple[int, int]]:
        """The physical (address, length) of a linear range, one for each page that it touches."""
        pieces = []
        mask = (1 << 64) - 1 if self.bits == 64 else (1 << 32) - 1
        while length:
            here = min(length, _PAGE - address % _PAGE)
            pieces.append((self._translate(address, write=write), here))
            address = address + here & mask
            length -= here
        return pieces

    def _translate(self, address: int, *, write: bool) -> int:
        sregs = self.sregs
        if self.bits == 64 and not _is_canonical(address, 57 if sregs.cr4 & 1 << 12 else 48):
            stack = self.insn.segment == "ss"
            raise Fault(SS if stack else GP, 0)
        user = self.cpl == 3
        error = (PF_WRITE if write else 0) | (PF_USER if user else 0)
        found = walk(self.memory, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, address)
        if found is None:
            raise Fault(PF, error, address)
        allowed = found.user if user else self._may_touch_user_pages(found.user)
        if write and not found.writable and (user or sregs.cr0 & CR0_WP):
            allowed = False
        if not allowed:
            raise Fault(PF, error | PF_PRESENT, address)
        return found.physical

    def _may_touch_user_pages(self, is_user_page: bool) -> bool:
        smap = self.sregs.cr4 & CR4_SMAP and not self.regs.rflags & RFLAGS_AC
        # Without paging, `walk` calls everything a user page.
        return not (is_user_page and smap and self.sregs.cr0 >> 31)

    def fetch(self, length: int) -> bytes:
        """Up to `length` instruction bytes at RIP: fewer where a page is missing."""
        code = b""
        address = int(self.regs.rip)
        if self.bits != 64:
            address = address + int(self.sregs.cs.base) & 0xFFFFFFFF
        sregs = self.sregs
        while len(code) < length:
            found = walk(self.memory, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, address)
            if found is None:
                break
            here = min(length - len(code), _PAGE - address % _PAGE)
            try:
                code += self.memory.read(found.physical, here)
            except GuestMemoryError:
                break
            address += here
        return code


def _is_canonical(address: int, bits: int) -> bool:
    return address >> (bits - 1) in (0, (1 << (65 - bits)) - 1)
