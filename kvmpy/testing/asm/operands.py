"""What an instruction works on: registers, memory, immediates and far pointers."""

from __future__ import annotations

from kvmpy.testing.asm.expression import AsmError, Expression, Token, Words, number

SIZES = {"byte": 8, "word": 16, "dword": 32, "qword": 64, "xmmword": 128}


class Register:
    """A register: `kind` is r (general purpose), sreg, cr, dr or xmm; `size` in bits.

    `high` marks ah, ch, dh and bh, which a REX prefix hides; `low` marks spl, bpl, sil and dil, which need one.
    """

    __slots__ = ("high", "kind", "low", "name", "number", "size")

    def __init__(self, name: str, kind: str, number: int, size: int, *, high: bool = False, low: bool = False) -> None:
        self.name = name
        self.kind = kind
        self.number = number
        self.size = size
        self.high = high
        self.low = low


def _registers() -> dict[str, Register]:
    found = []
    for index, name in enumerate(("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")):
        found += [Register(name, "r", index, 16), Register("e" + name, "r", index, 32)]
        found += [Register("r" + name, "r", index, 64)]
        if index < 4:
            found += [Register(name[0] + "l", "r", index, 8), Register(name[0] + "h", "r", index + 4, 8, high=True)]
        else:
            found += [Register(name + "l", "r", index, 8, low=True)]
    for index in range(8, 16):
        found += [Register(f"r{index}", "r", index, 64)]
        found += [Register(f"r{index}{letter}", "r", index, size) for letter, size in (("b", 8), ("w", 16), ("d", 32))]
    found += [Register(name, "sreg", index, 16) for index, name in enumerate(("es", "cs", "ss", "ds", "fs", "gs"))]
    found += [Register(f"cr{index}", "cr", index, 0) for index in (0, 2, 3, 4, 8)]
    found += [Register(f"dr{index}", "dr", index, 0) for index in range(8)]
    found += [Register(f"xmm{index}", "xmm", index, 128) for index in range(16)]
    return {register.name: register for register in found}


REGISTERS = _registers()


class Memory:
    """`[segment:base+index*scale+displacement]`; `size` is 0 where no keyword gave one.

    `relative` counts the displacement from the next instruction (`[rel label]`, 64-bit mode); `far` marks a pointer
    with a selector behind its offset.
    """

    __slots__ = ("base", "displacement", "far", "index", "relative", "scale", "segment", "size")

    def __init__(self) -> None:
        self.size = 0
        self.segment: Register | None = None
        self.base: Register | None = None
        self.index: Register | None = None
        self.scale = 1
        self.displacement: Expression = number(0)
        self.relative = False
        self.far = False

    @property
    def address_size(self) -> int:
        """The size of the registers in the address, or 0 where there are none."""
        register = self.base or self.index
        return register.size if register else 0


class Immediate:
    """A number in the instruction; `distance` is short or near where a jump's source says so."""

    __slots__ = ("distance", "size", "value")

    def __init__(self, value: Expression, size: int = 0, distance: str = "") -> None:
        self.value = value
        self.size = size
        self.distance = distance


class FarPointer:
    """`selector:offset`, the target of a far jump or call."""

    __slots__ = ("offset", "selector", "size")

    def __init__(self, selector: Expression, offset: Expression, size: int = 0) -> None:
        self.selector = selector
        self.offset = offset
        self.size = size


Operand = Register | Memory | Immediate | FarPointer


def register_of(token: Token) -> Register | None:
    """The register that `token` names, or None."""
    return REGISTERS.get(token.text.lower()) if token.kind == "name" else None


def read_operand(words: Words) -> Operand:
    """Reads one operand, with the size keywords before it."""
    size, distance = 0, ""
    while words.peek().kind == "name":
        word = words.peek().text.lower()
        if word in SIZES:
            size = SIZES[word]
            words.take()
            words.accept("ptr")
        elif word in ("short", "near", "far"):
            distance = word
            words.take()
        else:
            break
    register = register_of(words.peek())
    if register:
        words.take()
        if size and size != register.size:
            raise AsmError(f"{register.name} has a size of its own")
        return register
    if words.accept("["):
        memory = _read_memory(words)
        memory.size = size
        memory.far = distance == "far"
        return memory
    value = words.expression()
    if words.accept(":"):
        return FarPointer(value, words.expression(), size)
    if distance == "far":
        raise AsmError("a far target is written selector:offset, or far [address]")
    return Immediate(value, size, distance)


def _read_memory(words: Words) -> Memory:
    memory = Memory()
    memory.relative = words.accept("rel")
    segment = register_of(words.peek())
    if segment and segment.kind == "sreg":
        words.take()
        words.expect(":")
        memory.segment = segment
    terms: list[tuple[int, Expression]] = []
    sign = -1 if words.accept("-") else 1
    while True:
        register, scale = _read_scaled(words)
        if register is None:
            terms.append((sign, words.term()))
        elif sign < 0:
            raise AsmError(f"{register.name} cannot be subtracted in an address")
        else:
            _add_register(memory, register, scale)
        if words.accept("]"):
            break
        if words.accept("-"):
            sign = -1
        else:
            words.expect("+")
            sign = 1
    if memory.relative and memory.address_size:
        raise AsmError("an address with rel has no registers")
    memory.displacement = lambda symbols: sum(sign * term(symbols) for sign, term in terms)
    return memory


def _read_scaled(words: Words) -> tuple[Register | None, int]:
    """A register with its scale, written `rax`, `rax*4` or `4*rax`; scale 0 where none is written."""
    first, second, third = words.peek(), words.peek(1), words.peek(2)
    register, scale = register_of(first), 0
    if second.text == "*" and (register or register_of(third)):
        register, factor = (register, third) if register else (register_of(third), first)
        if factor.text not in ("1", "2", "4", "8"):
            raise AsmError("the scale of an index is 1, 2, 4 or 8")
        scale = int(factor.text)
        words.take()
        words.take()
    if register:
        words.take()
    return register, scale


def _add_register(memory: Memory, register: Register, scale: int) -> None:
    if register.kind != "r" or register.size == 8 or memory.address_size not in (0, register.size):
        raise AsmError(f"{register.name} cannot be part of this address")
    if memory.base is None and scale == 0:
        memory.base = register
    elif memory.index is None:
        memory.index, memory.scale = register, scale or 1
    elif memory.base is None and memory.scale == 1:
        memory.base = register
    else:
        raise AsmError("an address has one base and one index")
    # rsp cannot be an index: where the scale is 1 the two change places.
    if memory.index and memory.index.number == 4 and memory.base and memory.scale == 1:
        memory.base, memory.index = memory.index, memory.base
