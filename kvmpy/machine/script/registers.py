"""A vCPU's registers by name: fetched when they are first asked for, written back when they were changed."""

from __future__ import annotations

from kvmpy.kvm.structs import REGISTER_NAMES
from kvmpy.x86.cpustate import CR0_PE, EFER_LMA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from kvmpy.kvm import Vcpu

    # How to reach the vCPU: calls the function with it, in a thread that may.
    VcpuCall = Callable[[Callable[[Vcpu], Any]], Any]

_RFLAGS_VM = 1 << 17

_GENERAL, _SPECIAL, _XSAVE, _DEBUG = "regs", "sregs", "xsave", "debug_regs"

# Of the XSAVE area (Intel SDM volume 1, chapter 13), because KVM_GET_FPU and KVM_SET_FPU leave MXCSR out, and what is
# set by way of them is lost while XSTATE_BV says that a component is not in use.
_MXCSR = 24
_XMM = 160
_XSTATE_BV = 512
_X87_BIT, _SSE_BIT = 1, 2

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")


def _fields() -> Iterator[tuple[str, tuple[str, tuple[str | int, ...], int, int]]]:
    """(name, (group, way into its struct, lowest bit, width in bits)) of each register."""
    for name in REGISTER_NAMES:
        yield name, (_GENERAL, (name,), 0, 64)
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip"):
        yield "e" + name[1:], (_GENERAL, (name,), 0, 32)
        yield name[1:], (_GENERAL, (name,), 0, 16)
    yield "eflags", (_GENERAL, ("rflags",), 0, 32)
    for letter in "abcd":
        yield f"{letter}l", (_GENERAL, (f"r{letter}x",), 0, 8)
        yield f"{letter}h", (_GENERAL, (f"r{letter}x",), 8, 8)
    for name in ("si", "di", "bp", "sp"):
        yield f"{name}l", (_GENERAL, (f"r{name}",), 0, 8)
    for number in range(8, 16):
        for suffix, bits in (("d", 32), ("w", 16), ("b", 8)):
            yield f"r{number}{suffix}", (_GENERAL, (f"r{number}",), 0, bits)
    for name in _SEGMENTS:
        yield name, (_SPECIAL, (name, "selector"), 0, 16)
        yield f"{name}_base", (_SPECIAL, (name, "base"), 0, 64)
        yield f"{name}_limit", (_SPECIAL, (name, "limit"), 0, 32)
    for name in ("gdt", "idt"):
        yield f"{name}_base", (_SPECIAL, (name, "base"), 0, 64)
        yield f"{name}_limit", (_SPECIAL, (name, "limit"), 0, 16)
    for name in _CONTROL:
        yield name, (_SPECIAL, (name,), 0, 64)
    for number in range(16):
        yield f"xmm{number}", (_XSAVE, (_XMM + 16 * number,), 0, 128)
    for number in range(8):
        yield f"st{number}", (_XSAVE, (32 + 16 * number,), 0, 80)
    for name, offset, bits in (
        ("fcw", 0, 16), ("fsw", 2, 16), ("ftw", 4, 8), ("fop", 6, 16), ("fip", 8, 64), ("fdp", 16, 64),
        ("mxcsr", _MXCSR, 32),
    ):  # fmt: skip
        yield name, (_XSAVE, (offset,), 0, bits)
    for number in range(4):
        yield f"dr{number}", (_DEBUG, ("db", number), 0, 64)
    for name in ("dr6", "dr7"):
        yield name, (_DEBUG, (name,), 0, 64)


_FIELDS = dict(_fields())

NAMES = tuple(_FIELDS)
"""All names that `Registers` knows."""


class Registers:
    """The registers of one vCPU, as attributes that are integers: `registers.rax`, `registers.al`, `registers.cr3`.

    General registers in all widths, as instructions name them (writing a 32-bit one clears the upper half, the others
    leave the rest); `rip`, `rflags`; segments by selector (`cs`) with `cs_base` and `cs_limit`; `gdt_base`, `idt_base`
    and their limits; `cr0` to `cr8`, `efer`; `dr0` to `dr7`; `st0` to `st7`, `xmm0` to `xmm15`, `fcw`, `fsw`, `ftw`
    (a bit a register that is in use), `mxcsr`.  A name that does not exist is an `AttributeError`.

    Changes take effect with `flush`, which hooks and the debugger call themselves, and which drops what was fetched.
    """

    __slots__ = ("_call", "_changed", "_structs")

    _call: VcpuCall
    _changed: set[str]
    _structs: dict[str, Any]

    def __init__(self, call: VcpuCall) -> None:
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "_changed", set())
        object.__setattr__(self, "_structs", {})

    def __getattr__(self, name: str) -> int:
        group, path, shift, bits = _field(name)
        return _get(self._struct(group), path) >> shift & ((1 << bits) - 1)

    def __setattr__(self, name: str, value: int) -> None:
        group, path, shift, bits = _field(name)
        mask = (1 << bits) - 1
        struct = self._struct(group)
        value &= mask
        if group == _GENERAL and bits < 32:
            value = _get(struct, path) & ~(mask << shift) | value << shift
        _set(struct, path, value, bits // 8)
        self._changed.add(group)

    @property
    def code_bits(self) -> int:
        """The width of the code that the vCPU is in: 16, 32 or 64."""
        sregs = self._struct(_SPECIAL)
        if sregs.efer & EFER_LMA and sregs.cs.l:
            return 64
        return 32 if sregs.cs.db else 16

    @property
    def ring(self) -> int:
        """The privilege level, 0 to 3."""
        sregs = self._struct(_SPECIAL)
        if not sregs.cr0 & CR0_PE:
            return 0
        return 3 if self.rflags & _RFLAGS_VM else int(sregs.ss.dpl)

    @property
    def pc(self) -> int:
        """The linear address of the next instruction; to be set by way of `rip`."""
        if self.code_bits == 64:
            return self.rip
        return self.cs_base + self.rip & 0xFFFFFFFF

    def __dir__(self) -> tuple[str, ...]:
        return NAMES

    def __repr__(self) -> str:
        return "Registers(" + ", ".join(f"{name}={getattr(self, name):#x}" for name in REGISTER_NAMES) + ")"

    def msr(self, index: int) -> int:
        """The value of a model-specific register; `ValueError` where KVM cannot read it."""
        return int(self._call(lambda vcpu: vcpu.msr(index)))

    def set_msr(self, index: int, value: int) -> None:
        """Sets a model-specific register, at once; `ValueError` where KVM refuses."""
        if not self._call(lambda vcpu: vcpu.set_msr(index, value)):
            raise ValueError(f"KVM does not set MSR {index:#x} to {value:#x}")

    def flush(self) -> None:
        """Writes back what was changed, and forgets what was fetched."""
        structs = self._structs
        changed = {group: bytes(structs[group]) if group == _XSAVE else structs[group] for group in self._changed}
        self._changed.clear()
        self._structs.clear()
        if changed:
            self._call(lambda vcpu: [getattr(vcpu, f"set_{group}")(struct) for group, struct in changed.items()])

    def _struct(self, group: str) -> Any:
        struct = self._structs.get(group)
        if struct is None:
            struct = self._call(lambda vcpu: getattr(vcpu, group)())
            if group == _XSAVE:
                struct = bytearray(struct)
            self._structs[group] = struct
        return struct


def _field(name: str) -> tuple[str, tuple[str | int, ...], int, int]:
    try:
        return _FIELDS[name]
    except KeyError:
        raise AttributeError(f"there is no register {name!r}") from None


def _get(struct: Any, path: tuple[str | int, ...]) -> int:
    if isinstance(struct, bytearray):
        start = int(path[0])
        return int.from_bytes(struct[start : start + 16], "little")
    for part in path:
        struct = struct[part] if isinstance(part, int) else getattr(struct, part)
    return int(struct)


def _set(struct: Any, path: tuple[str | int, ...], value: int, size: int) -> None:
    *way, last = path
    for part in way:
        struct = getattr(struct, str(part))
    if isinstance(last, str):
        setattr(struct, last, value)
    elif isinstance(struct, bytearray):
        struct[last : last + size] = value.to_bytes(size, "little")
        struct[_XSTATE_BV] |= _SSE_BIT if last == _MXCSR or last >= _XMM else _X87_BIT
    else:
        struct[last] = value
