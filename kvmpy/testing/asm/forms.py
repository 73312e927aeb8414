"""The forms of an instruction, read from the table's lines, and which of them fits some operands.

A line of the table reads `mnemonic operands... | encoding`, close to the opcode tables of the Intel SDM, volume 2.

Operands: `r8 r16 r32 r64` registers; `rm8`... register or memory; `m` memory of any size; `xmm`, and `xm32 xm64
xm128` with memory; `sreg cr dr`; a register by its name; `imm8 imm16 imm32 imm64`; `simm8 simm32` sign-extended to the
operand size; `rel8 rel16 rel32` jump targets; `ptr` selector:offset; `mfar` memory holding one; a literal `1`.
`v` in place of a size stands for 16, 32 and 64 bits (`immv` and `relv` are 32 bits for 64; `av` is ax, eax, rax); where
no operand shows it, `v` stands in the encoding.

Encoding: bytes in hexadecimal (66, F2 or F3 before others is a mandatory prefix); `/r`, `/0` to `/7`; `B8+r`; `ib iw
id iq` immediates, `iv` as the operand size has them; `cb cv` offsets of jumps; `cp` a far pointer; `o16 o32 o64`
operand size; `a16 a32 a64` address size; `d64` 64-bit mode has 64 bits here without a prefix; `n64` not in 64-bit
mode; `x64` only there.
"""

from __future__ import annotations

from functools import cache

from kvmpy.testing.asm.operands import FarPointer, Memory, Operand, Register
from kvmpy.testing.asm.table import TABLE

_V_NUMBERS = {"immv": {16: "imm16", 32: "imm32", 64: "simm32"}, "relv": {16: "rel16", 32: "rel32", 64: "rel32"}}
_V_ACCUMULATOR = {16: "ax", 32: "eax", 64: "rax"}
_NUMBER_SIZES = {"ib": 1, "iw": 2, "id": 4, "iq": 8, "cb": 1}


class Form:
    """One encoding of one instruction, all sizes fixed.

    `operands` are patterns as in the table; `size` and `address` are 16, 32, 64, or 0 where neither a prefix nor the
    mode matters; `digit` is the reg field that `/0` to `/7` give, else None; `numbers` are the bytes of each immediate.
    """

    __slots__ = (
        "address",
        "default64",
        "digit",
        "mandatory",
        "modes",
        "modrm",
        "numbers",
        "opcode",
        "operands",
        "plus",
        "size",
    )

    def __init__(self, operands: list[str], encoding: list[str], size: int) -> None:
        self.operands = [_fixed(pattern, size) for pattern in operands]
        self.size = size
        self.address = 0
        self.default64 = "d64" in encoding
        self.modes: tuple[int, ...] = (16, 32, 64)
        self.digit: int | None = None
        self.modrm = False
        self.plus = False
        self.numbers: list[int] = []
        opcode = bytearray()
        for word in encoding:
            if word[0] == "/":
                self.modrm = True
                self.digit = int(word[1]) if word != "/r" else None
            elif word in _NUMBER_SIZES:
                self.numbers.append(_NUMBER_SIZES[word])
            elif word in ("iv", "cv", "cp"):
                self.numbers.append(2 if self.size == 16 else 4)
            elif word[0] == "o":
                self.size = int(word[1:])
            elif word[0] == "a":
                self.address = int(word[1:])
            elif word == "n64":
                self.modes = (16, 32)
            elif word == "x64":
                self.modes = (64,)
            elif word != "d64":
                self.plus = self.plus or word.endswith("+r")
                opcode.append(int(word.removesuffix("+r"), 16))
        if self.size == 64 or self.address == 64:
            self.modes = tuple(bits for bits in self.modes if bits == 64)
        self.mandatory = bytes(opcode[:1]) if len(opcode) > 1 and opcode[0] in (0x66, 0xF2, 0xF3) else b""
        self.opcode = bytes(opcode[len(self.mandatory) :])

    def default_size(self, bits: int) -> int:
        """The operand size in a mode of `bits` bits where nothing else says it."""
        return 32 if bits == 64 and not self.default64 else bits

    def valid(self, bits: int) -> bool:
        """Whether a mode of `bits` bits has this form."""
        return bits in self.modes and not (bits == 64 and self.default64 and self.size == 32)

    def accepts(self, operands: list[Operand]) -> bool:
        """Whether the operands' kinds and known sizes are this form's; the values of numbers come later."""
        return len(operands) == len(self.operands) and all(
            _accepts(pattern, operand, self.size) for pattern, operand in zip(self.operands, operands, strict=True)
        )

    def sized(self, operands: list[Operand], bits: int) -> bool:
        """Whether some operand says the size that this form works on, or the mode does."""
        known = set()
        for pattern, operand in zip(self.operands, operands, strict=True):
            if not isinstance(operand, Register) or (operand.kind == "r" and pattern not in ("cl", "dx")):
                known.add(operand.size)
        for pattern, operand in zip(self.operands, operands, strict=True):
            if pattern.startswith("rm") and isinstance(operand, Memory) and int(pattern[2:]) not in known:
                return False
        by_mode = [pattern for pattern in self.operands if pattern[:3] in ("rel", "ptr", "mfa", "imm", "sim")]
        unsaid = self.size and by_mode and self.size not in known
        return not unsaid or self.size == self.default_size(bits)


def _fixed(pattern: str, size: int) -> str:
    """`pattern` with `size` in the place of its v."""
    if pattern in _V_NUMBERS:
        return _V_NUMBERS[pattern][size]
    if pattern == "av":
        return _V_ACCUMULATOR[size]
    return pattern[:-1] + str(size) if pattern in ("rv", "rmv") else pattern


def _accepts(pattern: str, operand: Operand, size: int) -> bool:
    if isinstance(operand, Register):
        if pattern in ("sreg", "cr", "dr", "xmm"):
            return operand.kind == pattern
        if pattern.startswith("xm"):
            return operand.kind == "xmm"
        return pattern == operand.name or (operand.kind == "r" and pattern in (f"r{operand.size}", f"rm{operand.size}"))
    if isinstance(operand, Memory):
        if operand.far or pattern == "mfar":
            return operand.far and pattern == "mfar" and operand.size in (0, size)
        if pattern.startswith(("rm", "xm")) and pattern != "xmm":
            return operand.size in (0, int(pattern[2:]))
        return pattern == "m"
    if isinstance(operand, FarPointer):
        return pattern == "ptr" and operand.size in (0, size)
    if pattern.startswith("rel"):
        return operand.distance != ("near" if pattern == "rel8" else "short") and operand.size in (0, size)
    return pattern.startswith(("imm", "simm", "1")) and not operand.distance and operand.size in (0, size or 8)


@cache
def _lines() -> dict[str, list[tuple[list[str], list[str]]]]:
    lines: dict[str, list[tuple[list[str], list[str]]]] = {}
    for line in TABLE.splitlines():
        left, _, right = line.partition("|")
        if right:
            mnemonic, *operands = left.split()
            lines.setdefault(mnemonic, []).append((operands, right.split()))
    return lines


@cache
def forms(mnemonic: str) -> tuple[Form, ...]:
    """The forms of `mnemonic`, best first; none where there is no such instruction."""
    found = []
    for operands, encoding in _lines().get(mnemonic, []):
        sizes = (
            (16, 32, 64)
            if {"rv", "rmv", "av", "immv", "relv", "iv", "cv", "cp", "v"} & {*operands, *encoding}
            else (0,)
        )
        found += [Form(operands, [word for word in encoding if word != "v"], size) for size in sizes]
    return tuple(found)


def mnemonics() -> frozenset[str]:
    """Every instruction that the assembler knows."""
    return frozenset(_lines())
