"""From instruction bytes to an `Instruction`: prefixes, opcode, ModRM, SIB, displacement.

Pure.  It reads only the opcodes that `kvmpy.machine.assist.instructions` finishes; none of them has an
immediate.  Intel SDM volume 2, chapter 2.
"""

from __future__ import annotations

# Segment override prefixes, by the register's name in `Sregs`.
_SEGMENTS = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
_LOCK = 0xF0
_REPNE = 0xF2
_REP = 0xF3
OPERAND_SIZE = 0x66
_ADDRESS_SIZE = 0x67

_ESCAPE = 0x0F
_MAX_LENGTH = 15

RSP = 4
RBP = 5

# Opcodes without and with a ModRM byte.  0x0fxx is opcode xx behind the escape byte.
_PLAIN = frozenset((0x9B, 0xCC))
_WITH_MODRM = frozenset(
    0x0F00 | opcode for opcode in bytes.fromhex("01 10 11 28 29 2b 57 6e 6f 7e 7f ae b8 c7 d6 e7 ef")
)
_X87 = frozenset(range(0xD8, 0xE0))
# Where ModRM.reg is part of the opcode, and where the whole byte is (when it names no memory).
_GROUPS = frozenset((0x0FAE, 0x0FC7))
_GROUP_7 = 0x0F01


class TruncatedError(Exception):
    """The bytes end inside the instruction."""


class Instruction:
    """One decoded instruction.

    `opcode` is one byte, or 0x0fxx; `prefix` is the one that belongs to the opcode: 0xf3, 0xf2, 0x66 or 0;
    `digit` is ModRM.reg where it extends the opcode, the ModRM byte for opcode 0x0f01 and for an x87 instruction on
    registers, else None.  `operand_size` and `address_size` are in bits.  `reg` and `rm` have their REX bit;
    `is_memory` says that the operand is memory, at `segment`: `base + (index << scale) + displacement`, with None for
    a register that is not there and `rip_relative` where the base is the address of the next instruction.
    """

    __slots__ = (
        "address_size", "base", "digit", "displacement", "index", "is_memory", "length", "lock", "opcode",
        "operand_size", "prefix", "reg", "rex_w", "rip_relative", "rm", "scale", "segment",
    )  # fmt: skip

    def __init__(self) -> None:
        self.opcode = 0
        self.prefix = 0
        self.digit: int | None = None
        self.lock = False
        self.rex_w = False
        self.operand_size = 32
        self.address_size = 32
        self.length = 0
        self.reg = 0
        self.rm = 0
        self.is_memory = False
        self.segment = "ds"
        self.base: int | None = None
        self.index: int | None = None
        self.scale = 0
        self.displacement = 0
        self.rip_relative = False

    @property
    def key(self) -> tuple[int, int, int | None]:
        """What the instruction is looked up by: `(prefix, opcode, digit)`."""
        return self.prefix, self.opcode, self.digit


class _Reader:
    __slots__ = ("code", "position")

    def __init__(self, code: bytes) -> None:
        self.code = code[:_MAX_LENGTH]
        self.position = 0

    def byte(self) -> int:
        if self.position >= len(self.code):
            raise TruncatedError
        value = self.code[self.position]
        self.position += 1
        return value

    def signed(self, size: int) -> int:
        data = self.code[self.position : self.position + size]
        if len(data) < size:
            raise TruncatedError
        self.position += size
        return int.from_bytes(data, "little", signed=True)


def decode(code: bytes, bits: int) -> Instruction | None:
    """The instruction that `code` starts with, in a code segment of `bits` (16, 32 or 64) bits.

    None for one that is not known here, or that addresses memory with 16 bits.  Raises `TruncatedError` when
    `code` is shorter than the instruction.
    """
    reader = _Reader(code)
    insn = Instruction()
    segment = ""
    rep = 0
    prefixes = set()
    rex = 0
    while True:
        byte = reader.byte()
        if byte in _SEGMENTS:
            # In 64-bit mode only FS and GS have a base; the others' prefixes do nothing.
            if bits != 64 or byte in (0x64, 0x65):
                segment = _SEGMENTS[byte]
        elif byte in (_REP, _REPNE):
            rep = byte
        elif byte in (_LOCK, OPERAND_SIZE, _ADDRESS_SIZE):
            prefixes.add(byte)
        elif bits == 64 and byte & 0xF0 == 0x40:
            # A REX prefix counts only directly before the opcode.
            rex = byte
            continue
        else:
            break
        rex = 0
    if byte == _ESCAPE:
        byte = _ESCAPE << 8 | reader.byte()
    insn.opcode = byte
    insn.prefix = rep or (OPERAND_SIZE if OPERAND_SIZE in prefixes else 0)
    insn.lock = _LOCK in prefixes
    insn.rex_w = bool(rex & 8)
    insn.operand_size = _operand_size(bits, rex, OPERAND_SIZE in prefixes)
    insn.address_size = _address_size(bits, _ADDRESS_SIZE in prefixes)
    if byte in _WITH_MODRM or byte in _X87:
        if not _read_modrm(reader, insn, rex, bits):
            return None
    elif byte not in _PLAIN:
        return None
    if segment:
        insn.segment = segment
    insn.length = reader.position
    return insn


def _operand_size(bits: int, rex: int, override: bool) -> int:
    if rex & 8:
        return 64
    return 16 if override != (bits == 16) else 32


def _address_size(bits: int, override: bool) -> int:
    if bits == 64:
        return 32 if override else 64
    return 16 if override != (bits == 16) else 32


def _read_modrm(reader: _Reader, insn: Instruction, rex: int, bits: int) -> bool:
    """Reads ModRM and what follows it; False for 16-bit addressing."""
    modrm = reader.byte()
    mode, low = modrm >> 6, modrm & 7
    insn.reg = modrm >> 3 & 7 | (rex & 4) << 1
    insn.rm = low | (rex & 1) << 3
    insn.is_memory = mode != 3
    if insn.opcode in _GROUPS:
        insn.digit = modrm >> 3 & 7
    elif insn.opcode == _GROUP_7:
        insn.digit = modrm
    elif insn.opcode in _X87:
        insn.digit = modrm >> 3 & 7 if insn.is_memory else modrm
    if not insn.is_memory:
        return True
    if insn.address_size == 16:
        return False
    insn.base = insn.rm
    if low == RSP:
        sib = reader.byte()
        insn.scale = sib >> 6
        index = sib >> 3 & 7 | (rex & 2) << 2
        insn.index = None if index == RSP else index
        insn.base = low = sib & 7
        insn.base |= (rex & 1) << 3
    elif mode == 0 and low == RBP and bits == 64:
        insn.rip_relative = True
    if mode == 0 and low == RBP:
        insn.base = None
        insn.displacement = reader.signed(4)
    elif mode:
        insn.displacement = reader.signed(1 if mode == 1 else 4)
    # Without REX.B, RSP and RBP address the stack.
    if insn.base in (RSP, RBP):
        insn.segment = "ss"
    return True
