"""The x87's registers while one of its instructions is finished: the stack, the words of control and status.

Intel SDM volume 1, 8.1; where they lie in the XSAVE area: 13.4.1.
"""

from __future__ import annotations

from kvmpy.machine.assist import float80
from kvmpy.machine.assist.cpu import CR0_EM, CR0_NE, CR0_TS, MF, NM, UD, Cpu, Fault, UnfinishedError
from kvmpy.machine.assist.float80 import IE, INDEFINITE, PE, Number, Work

# The XSAVE area: control word, status word, a bit for each register in use, and the registers from the top on.
_FCW, _FSW, _FTW = 0, 2, 4
_ST, _ST_SIZE = 32, 16
_XSTATE_BV = 512
_XSTATE_X87 = 1 << 0

_INITIAL_FCW = 0x37F

# The status word.
_EXCEPTIONS = 0x3F
_STACK_FAULT = 1 << 6
_SUMMARY = 1 << 7
C0, C1, C2, C3 = 1 << 8, 1 << 9, 1 << 10, 1 << 14
_TOP = 7 << 11
_BUSY = 1 << 15


class Fpu:
    """The x87 of a `Cpu`: `control`, `status`, `used`, and the stack.  Nothing is kept before `commit`."""

    __slots__ = ("_cpu", "_registers", "control", "status", "used", "work")

    def __init__(self, cpu: Cpu, *, waits: bool = True) -> None:
        sregs = cpu.sregs
        if cpu.insn.lock:
            raise Fault(UD)
        if sregs.cr0 & (CR0_EM | CR0_TS):
            raise Fault(NM)
        self._cpu = cpu
        area = cpu.xsave_area
        self.control = int.from_bytes(area[_FCW : _FCW + 2], "little")
        self.status = int.from_bytes(area[_FSW : _FSW + 2], "little")
        self.used = area[_FTW]
        # Without CR0.NE the PC reports it by IRQ 13, which KVM does not have.
        if waits and self.status & _SUMMARY and sregs.cr0 & CR0_NE:
            raise Fault(MF)
        starts = range(_ST, _ST + 8 * _ST_SIZE, _ST_SIZE)
        self._registers = [int.from_bytes(area[start : start + 10], "little") for start in starts]
        self.work = Work(self.control)

    @property
    def top(self) -> int:
        """The number of the register that is ST(0)."""
        return self.status >> 11 & 7

    def _turn(self, by: int) -> None:
        # The area has the registers in the order of the stack.
        self.status = self.status & ~_TOP | (self.top + by & 7) << 11
        self._registers = self._registers[by:] + self._registers[:by]

    def is_empty(self, index: int) -> bool:
        """Whether ST(index) holds nothing."""
        return not self.used >> (self.top + index & 7) & 1

    def bits(self, index: int) -> int:
        """ST(index); the indefinite NaN, and a stack fault, where it holds nothing."""
        if self.is_empty(index):
            self.work.flags |= IE
            self.status |= _STACK_FAULT
            return INDEFINITE
        return self._registers[index]

    def number(self, index: int) -> Number:
        """The same, as an operand."""
        return float80.from_extended(self.bits(index))

    def put(self, index: int, bits: int) -> None:
        """Sets ST(index)."""
        self.used |= 1 << (self.top + index & 7)
        self._registers[index] = bits

    def free(self, index: int) -> None:
        """Empties ST(index)."""
        self.used &= ~(1 << (self.top + index & 7))

    def push(self, bits: int) -> None:
        """A new ST(0); a stack fault where there is no room."""
        self._turn(-1)
        if not self.is_empty(0):
            self.work.flags = IE
            self.work.up = True  # C1 tells an overflow from an underflow.
            self.status |= _STACK_FAULT
            bits = INDEFINITE
        self.put(0, bits)

    def pop(self, count: int = 1) -> None:
        """Drops the top of the stack."""
        for _ in range(count):
            self.free(0)
            self._turn(1)

    def conditions(self, bits: int) -> None:
        """Sets C0, C2 and C3 to these."""
        self.status = self.status & ~(C0 | C1 | C2 | C3) | bits

    def check(self) -> None:
        """`UnfinishedError` for an exception that the guest wants to hear of."""
        if self.work.flags & ~self.control & _EXCEPTIONS & ~PE:
            raise UnfinishedError

    def commit(self) -> None:
        """Keeps what was done."""
        self.check()
        work = self.work
        self.status = self.status & ~C1 | (C1 if work.up else 0) | work.flags
        self.save()

    def save(self) -> None:
        """As `commit`, where no operation was done."""
        pending = bool(self.status & ~self.control & _EXCEPTIONS)
        self.status = self.status & ~(_SUMMARY | _BUSY) | (_SUMMARY | _BUSY if pending else 0)
        area = self._cpu.xsave_area
        area[_FCW : _FCW + 2] = self.control.to_bytes(2, "little")
        area[_FSW : _FSW + 2] = self.status.to_bytes(2, "little")
        area[_FTW] = self.used
        for index, bits in enumerate(self._registers):
            start = _ST + index * _ST_SIZE
            area[start : start + 10] = bits.to_bytes(10, "little")
        area[_XSTATE_BV] |= _XSTATE_X87
        self._cpu.set_xsave_area(area)

    def clear_exceptions(self) -> None:
        """Forgets which there were."""
        self.status &= ~(_EXCEPTIONS | _STACK_FAULT | _SUMMARY | _BUSY)

    def reset(self) -> None:
        """As `fninit` leaves it."""
        self.control, self.status, self.used = _INITIAL_FCW, 0, 0
