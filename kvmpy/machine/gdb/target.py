"""The processor as gdb knows it: which registers it has, in which order, and how they map to a vCPU's.

The target is amd64 in every mode, as QEMU's is: a description is read once, and a guest changes its mode many times.
In 16 and 32-bit code tell gdb `set architecture i8086` or `i386` for its disassembly.  `rip` is there the linear
address of the next instruction, segment base included, so that breakpoints and code are where gdb looks for them.

GDB manual, "Target Descriptions" and "i386 Features".
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.machine.script.registers import Registers


class Register:
    """One of gdb's registers: its `name` and `bits`, its `type` and `group` there."""

    __slots__ = ("bits", "group", "name", "type")

    def __init__(self, name: str, bits: int, type: str, group: str = "") -> None:
        self.name = name
        self.bits = bits
        self.type = type
        self.group = group

    def get(self, registers: Registers) -> int:
        """Its value in a vCPU that stands still."""
        if self.name == "rip":
            return registers.pc
        if self.name in _X87:
            name, shift = _X87[self.name]
            return int(getattr(registers, name)) >> shift & 0xFFFFFFFF
        if self.name == "ftag":
            return _full_tags(registers.ftw)
        return int(getattr(registers, self.name))

    def set(self, registers: Registers, value: int) -> None:
        """Changes it, where `value` is another than it has."""
        if value == self.get(registers):
            return
        if self.name == "rip" and registers.code_bits != 64:
            registers.rip = value - registers.cs_base & 0xFFFFFFFF
        elif self.name in _X87:
            name, shift = _X87[self.name]
            setattr(registers, name, getattr(registers, name) & ~(0xFFFFFFFF << shift) | value << shift)
        elif self.name == "ftag":
            registers.ftw = _short_tags(value)
        else:
            setattr(registers, self.name, value)


# gdb's names of the x87's control registers: ours, and the lowest bit of theirs in it.
_X87 = {
    "fctrl": ("fcw", 0), "fstat": ("fsw", 0), "fiseg": ("fip", 32), "fioff": ("fip", 0),
    "foseg": ("fdp", 32), "fooff": ("fdp", 0),
}  # fmt: skip

_EMPTY = 3


def _full_tags(short: int) -> int:
    """Two bits a register, as FNSTENV has them, of the one that FXSAVE keeps; valid, zero and special are all 0."""
    return sum(_EMPTY << 2 * number for number in range(8) if not short >> number & 1)


def _short_tags(full: int) -> int:
    return sum(1 << number for number in range(8) if full >> 2 * number & 3 != _EMPTY)


def _core() -> Iterator[Register]:
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi"):
        yield Register(name, 64, "int64")
    yield Register("rbp", 64, "data_ptr")
    yield Register("rsp", 64, "data_ptr")
    for number in range(8, 16):
        yield Register(f"r{number}", 64, "int64")
    yield Register("rip", 64, "code_ptr")
    yield Register("eflags", 32, "i386_eflags")
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        yield Register(name, 32, "int32")
    for number in range(8):
        yield Register(f"st{number}", 80, "i387_ext")
    for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"):
        yield Register(name, 32, "int", "float")


def _sse() -> Iterator[Register]:
    for number in range(16):
        yield Register(f"xmm{number}", 128, "vec128")
    yield Register("mxcsr", 32, "int", "vector")


def _system() -> Iterator[Register]:
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        yield Register(name, 64, "int64", "system")


_FLAGS = {
    "CF": 0, "": 1, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11, "NT": 14, "RF": 16,
    "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21,
}  # fmt: skip

_VECTORS = {
    "v4f": ("ieee_single", 4), "v2d": ("ieee_double", 2), "v16i8": ("int8", 16), "v8i16": ("int16", 8),
    "v4i32": ("int32", 4), "v2i64": ("int64", 2),
}  # fmt: skip

_FEATURES = (
    ("org.gnu.gdb.i386.core", tuple(_core())),
    ("org.gnu.gdb.i386.sse", tuple(_sse())),
    ("org.gnu.gdb.i386.segments", (Register("fs_base", 64, "int"), Register("gs_base", 64, "int"))),
    ("kvmpy.i386.system", tuple(_system())),
)

REGISTERS = tuple(register for _, registers in _FEATURES for register in registers)
"""All registers in gdb's order: a register's number is its place here."""

NUMBERS = {register.name: number for number, register in enumerate(REGISTERS)}
"""Name → number."""

EXPEDITED = tuple(NUMBERS[name] for name in ("rbp", "rsp", "rip"))
"""The numbers of what gdb asks for first at each stop."""


def description() -> bytes:
    """The target description, `target.xml`."""
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        '<target version="1.0">',
        "<architecture>i386:x86-64</architecture>",
    ]
    for name, registers in _FEATURES:
        lines.append(f'<feature name="{name}">')
        if any(register.type == "i386_eflags" for register in registers):
            lines.append('<flags id="i386_eflags" size="4">')
            lines += [f'<field name="{flag}" start="{bit}" end="{bit}"/>' for flag, bit in _FLAGS.items()]
            lines.append("</flags>")
        if any(register.type == "vec128" for register in registers):
            lines += [f'<vector id="{id}" type="{kind}" count="{count}"/>' for id, (kind, count) in _VECTORS.items()]
            lines.append('<union id="vec128">')
            lines += [f'<field name="{id}" type="{id}"/>' for id in _VECTORS]
            lines += ['<field name="uint128" type="uint128"/>', "</union>"]
        for register in registers:
            group = f' group="{register.group}"' if register.group else ""
            lines.append(f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>')
        lines.append("</feature>")
    lines.append("</target>")
    return "\n".join(lines).encode()


def to_hex(register: Register, registers: Registers) -> bytes:
    """A register's value as packets carry it: bytes in the target's order, in hexadecimal digits."""
    return register.get(registers).to_bytes(register.bits // 8, "little").hex().encode()
