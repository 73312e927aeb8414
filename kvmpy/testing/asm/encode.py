"""One instruction as bytes: prefixes, opcode, ModR/M, SIB, displacement and immediates (Intel SDM, volume 2, 2.1)."""

from __future__ import annotations

from kvmpy.testing.asm.expression import AsmError, Expression, Symbols, UndefinedError
from kvmpy.testing.asm.forms import Form, forms
from kvmpy.testing.asm.operands import FarPointer, Immediate, Memory, Operand, Register

SEGMENT_PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)

REX = 0x40
REX_W, REX_R, REX_X, REX_B = REX | 8, REX | 4, REX | 2, REX | 1

# Base and index by their numbers, in the order of the 16-bit r/m field: bx+si, bx+di, bp+si, bp+di, si, di, bp, bx.
_BASES_16 = ({3, 6}, {3, 7}, {5, 6}, {5, 7}, {6}, {7}, {5}, {3})


class _RangeError(AsmError):
    """A value that this form cannot hold; a longer form may."""


class Instruction:
    """One instruction of the source, encoded anew in each pass.

    It never goes back to a shorter form than it took before, so that the passes come to an end.  `prefixes` are the
    bytes of lock and rep; `operand_size` and `address_size` are those of o32, a32 and the like, else 0.
    """

    __slots__ = ("address_size", "bits", "forms", "mnemonic", "operand_size", "operands", "prefixes", "wide")

    def __init__(self, mnemonic: str, operands: list[Operand], bits: int) -> None:
        self.mnemonic = mnemonic
        self.operands = operands
        self.bits = bits
        self.prefixes = b""
        self.operand_size = 0
        self.address_size = 0
        self.wide = False
        self.forms = self._select()

    def _select(self) -> list[Form]:
        accepted = [form for form in forms(self.mnemonic) if form.accepts(self.operands)]
        if not accepted:
            raise AsmError(f"{self.mnemonic} does not take these operands")
        valid = [form for form in accepted if form.valid(self.bits)]
        if not valid:
            raise AsmError(f"{self.bits}-bit mode has no {self.mnemonic} with these operands")
        sized = [form for form in valid if form.sized(self.operands, self.bits)]
        if not sized:
            raise AsmError(f"say byte, word, dword or qword for the operand of {self.mnemonic}")
        return sized

    def encode(self, symbols: Symbols, final: bool) -> bytes:
        """The bytes at the address `symbols["$"]`; only the `final` pass objects to unknown and too large values."""
        while True:
            try:
                return _Encoding(self, self.forms[0], symbols, final).whole()
            except _RangeError:
                if len(self.forms) == 1:
                    raise
                del self.forms[0]


class _Encoding:
    """The work of one `Instruction.encode`."""

    def __init__(self, instruction: Instruction, form: Form, symbols: Symbols, final: bool) -> None:
        self.instruction = instruction
        self.form = form
        self.symbols = symbols
        self.final = final
        self.lenient = not final and len(instruction.forms) == 1
        self.bits = instruction.bits
        self.size = form.size or instruction.operand_size
        self.address_size = form.address or instruction.address_size
        self.rex = REX_W if self.size == 64 and not form.default64 else 0
        self.segment: Register | None = None
        self.relative: Expression | None = None

    def whole(self) -> bytes:
        """The whole instruction."""
        opcode = bytearray(self.form.opcode)
        modrm = b""
        if self.form.modrm:
            modrm = self._modrm(*_reg_and_rm(self.form, self.instruction.operands))
        elif self.form.plus:
            register = next(operand for operand in self.instruction.operands if isinstance(operand, Register))
            opcode[-1] += self._register(register, REX_B)
        head = self._prefixes() + opcode + modrm
        end = self.symbols["$"] + len(head) + sum(self.form.numbers)
        if self.relative:
            head[-4:] = self._number(self._value(self.relative, end) - end, 4, signed=True)
        return bytes(head + self._numbers(end))

    def _prefixes(self) -> bytearray:
        prefixes = bytearray(self.instruction.prefixes)
        if self.segment:
            prefixes.append(SEGMENT_PREFIXES[self.segment.number])
        if self.address_size not in (0, self.bits):
            if 64 in (self.address_size, self.bits) and self.address_size != 32:
                raise AsmError(f"{self.bits}-bit mode has no {self.address_size}-bit addresses")
            prefixes.append(0x67)
        if self.size in (16, 32) and self.size != self.form.default_size(self.bits):
            prefixes.append(0x66)
        prefixes += self.form.mandatory
        if self.rex:
            if self.bits != 64:
                raise AsmError("64-bit registers and r8 to r15 need 64-bit mode")
            if any(isinstance(operand, Register) and operand.high for operand in self.instruction.operands):
                raise AsmError("ah, bh, ch and dh cannot stand beside what needs a REX prefix")
            prefixes.append(self.rex)
        return prefixes

    def _register(self, register: Register, rex: int) -> int:
        """The low three bits of the register's number; `rex` holds the fourth."""
        if register.number > 7:
            self.rex |= rex
        if register.low:
            self.rex |= REX
        return register.number & 7

    def _modrm(self, reg: Register | int, rm: Register | Memory) -> bytes:
        field = (reg if isinstance(reg, int) else self._register(reg, REX_R)) << 3
        if isinstance(rm, Register):
            return bytes([0xC0 | field | self._register(rm, REX_B)])
        self.segment = rm.segment
        self.address_size = rm.address_size or self.address_size or self.bits
        if rm.relative:
            if self.bits != 64:
                raise AsmError("rel needs 64-bit mode")
            self.relative = rm.displacement
            return bytes([field | 5]) + bytes(4)
        return self._memory_16(field, rm) if self.address_size == 16 else self._memory(field, rm)

    def _memory_16(self, field: int, memory: Memory) -> bytes:
        numbers = {register.number for register in (memory.base, memory.index) if register}
        if not numbers:
            return bytes([field | 6]) + self._number(self._value(memory.displacement), 2)
        if numbers not in _BASES_16 or memory.scale != 1 or memory.base is memory.index:
            raise AsmError("a 16-bit address is made of bx or bp, si or di, and a number")
        rm = _BASES_16.index(numbers)
        mod, displacement = self._displacement(memory.displacement, required=rm == 6)
        return bytes([mod | field | rm]) + displacement

    def _memory(self, field: int, memory: Memory) -> bytes:
        base, index = memory.base, memory.index
        if index and index.number == 4:
            raise AsmError("the stack pointer cannot be an index")
        if base is None and index is None and self.bits != 64:
            return bytes([field | 5]) + self._number(self._value(memory.displacement), 4)
        # No base is written as rbp with mod 0, and has four bytes of displacement.
        low = self._register(base, REX_B) if base else 5
        if base:
            mod, displacement = self._displacement(memory.displacement, required=low == 5)
        else:
            signed = self.address_size == 64
            mod, displacement = 0, self._number(self._value(memory.displacement), 4, signed=signed)
        if base and index is None and low != 4:
            return bytes([mod | field | low]) + displacement
        middle = self._register(index, REX_X) if index else 4
        sib = (memory.scale.bit_length() - 1) << 6 | middle << 3 | low
        return bytes([mod | field | 4, sib]) + displacement

    def _displacement(self, expression: Expression, required: bool) -> tuple[int, bytes]:
        """The mod bits and the displacement, as short as may be; `required` where none at all means something else."""
        value = _signed(self._value(expression), self.address_size)
        if not self.instruction.wide:
            if value == 0 and not required:
                return 0x00, b""
            if -0x80 <= value < 0x80:
                return 0x40, value.to_bytes(1, "little", signed=True)
            self.instruction.wide = True
        return 0x80, self._number(value, 2 if self.address_size == 16 else 4, signed=self.address_size == 64)

    def _numbers(self, end: int) -> bytes:
        """The immediates; `end` is the address behind the instruction."""
        found = bytearray()
        lengths = iter(self.form.numbers)
        for pattern, operand in zip(self.form.operands, self.instruction.operands, strict=True):
            if isinstance(operand, FarPointer):
                found += self._number(self._value(operand.offset), next(lengths))
                found += self._number(self._value(operand.selector), next(lengths))
            elif isinstance(operand, Immediate):
                if pattern == "1":
                    if self._value(operand.value) != 1:
                        raise _RangeError("the count is not 1")
                elif pattern.startswith("rel"):
                    found += self._jump(self._value(operand.value, end) - end, next(lengths))
                else:
                    value = self._value(operand.value)
                    signed = pattern.startswith("simm")
                    found += self._number(_signed(value, self.size) if signed else value, next(lengths), signed=signed)
        return bytes(found)

    def _jump(self, distance: int, length: int) -> bytes:
        if self.bits == 16 and self.size != 32:
            distance = _wrapped(distance, 16)
        elif self.bits == 32:
            distance = _wrapped(distance, 32)
        return self._number(distance, length, signed=True)

    def _value(self, expression: Expression, unknown: int = 0) -> int:
        """What the expression comes to; `unknown` while a label in it has no address yet."""
        try:
            return expression(self.symbols)
        except UndefinedError:
            if self.final:
                raise
            return unknown

    def _number(self, value: int, length: int, signed: bool = False) -> bytes:
        """`value` in `length` bytes, signed or either way."""
        bits = 8 * length
        if not -(1 << bits - 1) <= value < 1 << (bits - 1 if signed else bits) and not self.lenient:
            raise _RangeError(f"{value:#x} does not fit into {bits} bits")
        return (value & (1 << bits) - 1).to_bytes(length, "little")


def _reg_and_rm(form: Form, operands: list[Operand]) -> tuple[Register | int, Register | Memory]:
    """Which operand goes into the reg field of ModR/M, and which into r/m."""
    reg: Register | int = form.digit or 0
    rm: Register | Memory | None = None
    rest: list[Register] = []
    for pattern, operand in zip(form.operands, operands, strict=True):
        if isinstance(operand, Memory):
            rm = operand
        elif isinstance(operand, Register) and pattern != operand.name:
            if pattern.startswith(("rm", "xm")) and pattern != "xmm":
                rm = operand
            else:
                rest.append(operand)
    if rm is None:
        # Control, debug, segment and xmm registers take reg, a general-purpose one beside them takes r/m.
        rest.sort(key=lambda register: register.kind == "r")
        rm = rest.pop()
    return rest[0] if rest else reg, rm


def _signed(value: int, size: int) -> int:
    """`value` of `size` bits with its top bit as the sign; out of range it stays as it is."""
    return value - (1 << size) if size and 1 << size - 1 <= value < 1 << size else value


def _wrapped(value: int, size: int) -> int:
    """`value` modulo `size` bits, as a signed number: a jump goes round the end of the address space."""
    half = 1 << size - 1
    return (value + half) % (2 * half) - half
