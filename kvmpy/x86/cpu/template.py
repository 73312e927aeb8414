"""Custom CPU templates in Firecracker's JSON: bit by bit changes of CPUID and MSRs.

    {"kvm_capabilities": ["121", "!56"],
     "cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
                          "modifiers": [{"register": "ecx", "bitmap": "0bxxxx_1111_..."}]}],
     "msr_modifiers": [{"addr": "0x10a", "bitmap": "0bxx...01"}]}

A bitmap has the highest bit first: `0` clears, `1` sets, `x` leaves as it is; `_` parts groups, and bits above those
that are written stay.  Numbers are in hexadecimal or binary, with `0x` or `0b`.
"""

from __future__ import annotations

import json
import os
import stat

from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.kvm import CpuidEntry, System, Vcpu

MAX_SIZE = 1 << 20
MAX_MODIFIERS = 1024

REGISTERS = ("eax", "ebx", "ecx", "edx")
# KVM_CPUID_FLAG_SIGNIFCANT_INDEX, STATEFUL_FUNC and STATE_READ_NEXT.
MAX_FLAGS = 7

_OTHER_PROCESSORS = ("reg_modifiers", "vcpu_features")


class Bitmap:
    """Bits to change in a register: those of `mask` become those of `value`, which has no others."""

    __slots__ = ("mask", "value")

    def __init__(self, mask: int, value: int) -> None:
        self.mask = mask
        self.value = value

    def apply(self, register: int) -> int:
        """`register` with the changes."""
        return register & ~self.mask | self.value


class Template:
    """A template as read; `parse_template` makes it.

    `capabilities` are the numbers of KVM's that must be there; `cpuid` has (leaf, sub-leaf, flags, [(register,
    bitmap)]) and `msrs` has (index, bitmap), both in the file's order.
    """

    __slots__ = ("capabilities", "cpuid", "msrs")

    def __init__(
        self,
        capabilities: list[int],
        cpuid: list[tuple[int, int, int, list[tuple[str, Bitmap]]]],
        msrs: list[tuple[int, Bitmap]],
    ) -> None:
        self.capabilities = capabilities
        self.cpuid = cpuid
        self.msrs = msrs

    def check(self, system: System) -> None:
        """Raises a `ConfigError` where KVM lacks a capability that the template asks for."""
        for number in self.capabilities:
            if not system.check_extension(number):
                raise ConfigError("cpu.kvm_capabilities", f"this host's KVM lacks capability {number}")

    def apply_cpuid(self, entries: list[CpuidEntry]) -> None:
        """Changes `entries` in place; a `ConfigError` for a leaf that they lack."""
        table = {(entry.function, entry.index): entry for entry in entries}
        for number, (leaf, subleaf, flags, modifiers) in enumerate(self.cpuid):
            entry = table.get((leaf, subleaf))
            if entry is None:
                where = f"leaf {leaf:#x}, sub-leaf {subleaf:#x}"
                raise ConfigError(f"cpu.cpuid_modifiers[{number}]", f"this host's KVM has no CPUID {where}")
            entry.flags = flags
            for register, bitmap in modifiers:
                setattr(entry, register, bitmap.apply(getattr(entry, register)))

    def apply_msrs(self, vcpu: Vcpu) -> None:
        """Changes the MSRs of `vcpu`; a `ConfigError` for one that KVM cannot read, or set so."""
        for number, (index, bitmap) in enumerate(self.msrs):
            old = vcpu.msrs([index]).get(index)
            if old is None:
                raise ConfigError(f"cpu.msr_modifiers[{number}]", f"this host's KVM has no MSR {index:#x}")
            new = bitmap.apply(old)
            if new != old and not vcpu.set_msr(index, new):
                text = f"this host's KVM does not let MSR {index:#x} be {new:#x}; it is {old:#x}"
                raise ConfigError(f"cpu.msr_modifiers[{number}]", text)


def load_template(source: str | bytes) -> Template:
    """The template in the file of that name, or in those bytes; else a `ConfigError` at `cpu`, or at a place in it."""
    return parse_template(source if isinstance(source, bytes) else _read(source))


def _read(name: str) -> bytes:
    try:
        # A FIFO must not keep us waiting for its writer.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise ConfigError("cpu", f"the template {name!r:.200}: {reason}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError("cpu", f"the template {name!r:.200} is not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError("cpu", f"the template {name!r:.200} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def parse_template(data: bytes, path: str = "cpu") -> Template:
    """The template that JSON text describes; a `ConfigError` that says where under `path` it is wrong."""
    if len(data) > MAX_SIZE:
        raise ConfigError(path, f"the template has more than {MAX_SIZE} bytes")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_no_repeats)
    except RecursionError:
        raise ConfigError(path, "the template is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are.
        raise ConfigError(path, f"the template is not JSON: {error!s:.200}") from None
    if isinstance(document, dict):
        for key in _OTHER_PROCESSORS:
            if key in document:
                raise ConfigError(f"{path}.{key}", "it is for aarch64; this is x86-64")
    root = _object(document, path, (), ("kvm_capabilities", "cpuid_modifiers", "msr_modifiers"))
    return Template(
        [number for where, item in _items(root, path, "kvm_capabilities") for number in _capability(item, where)],
        [_leaf(item, where) for where, item in _items(root, path, "cpuid_modifiers")],
        [_msr(item, where) for where, item in _items(root, path, "msr_modifiers")],
    )


def _capability(item: Any, path: str) -> list[int]:
    """The capability to look for: none for `!56`, which takes one from Firecracker's own list of checks."""
    if not isinstance(item, str):
        raise ConfigError(path, 'not a text, as in "121" or "!56"')
    digits = item.removeprefix("!")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) < 1 << 31):
        raise ConfigError(path, f"{item!r:.100} is not the number of a KVM capability")
    return [] if item.startswith("!") else [int(digits)]


def _leaf(item: Any, path: str) -> tuple[int, int, int, list[tuple[str, Bitmap]]]:
    leaf = _object(item, path, ("leaf", "subleaf", "flags", "modifiers"))
    flags = leaf["flags"]
    if type(flags) is not int or not 0 <= flags <= MAX_FLAGS:
        raise ConfigError(f"{path}.flags", f"{flags!r:.100} is not a number from 0 to {MAX_FLAGS}")
    modifiers = [_modifier(each, where) for where, each in _items(leaf, path, "modifiers")]
    return (
        _number(leaf["leaf"], f"{path}.leaf", 32),
        _number(leaf["subleaf"], f"{path}.subleaf", 32),
        flags,
        modifiers,
    )


def _modifier(item: Any, path: str) -> tuple[str, Bitmap]:
    modifier = _object(item, path, ("register", "bitmap"))
    if modifier["register"] not in REGISTERS:
        raise ConfigError(f"{path}.register", f"{modifier['register']!r:.100} is none of {', '.join(REGISTERS)}")
    return modifier["register"], parse_bitmap(modifier["bitmap"], f"{path}.bitmap", 32)


def _msr(item: Any, path: str) -> tuple[int, Bitmap]:
    msr = _object(item, path, ("addr", "bitmap"))
    return _number(msr["addr"], f"{path}.addr", 32), parse_bitmap(msr["bitmap"], f"{path}.bitmap", 64)


def parse_bitmap(text: Any, path: str, width: int) -> Bitmap:
    """The bitmap that `text` writes, of up to `width` bits; else a `ConfigError` at `path`."""
    if not isinstance(text, str):
        raise ConfigError(path, "not a text, as in 0bxx01")
    digits = text.removeprefix("0b").replace("_", "")
    if not 0 < len(digits) <= width or digits.strip("01x"):
        raise ConfigError(path, f"{text!r:.100} is not 1 to {width} of 0, 1 and x after 0b")
    mask = digits.replace("0", "1").replace("x", "0")
    return Bitmap(int(mask, 2), int(digits.replace("x", "0"), 2))


def _number(text: Any, path: str, width: int) -> int:
    """The number that `text` writes as 0x... or 0b..., of up to `width` bits."""
    if isinstance(text, str):
        base, allowed = {"0x": (16, "0123456789abcdefABCDEF"), "0b": (2, "01")}.get(text[:2], (0, ""))
        digits = text[2:]
        if base and 0 < len(digits) <= 64 and not digits.strip(allowed) and int(digits, base) >> width == 0:
            return int(digits, base)
    raise ConfigError(path, f"{text!r:.100} is not a number of {width} bits, as in 0x1f or 0b101, in quotes")


def _items(parent: dict[str, Any], path: str, key: str) -> list[tuple[str, Any]]:
    """The items of a list, each with its path."""
    items = parent.get(key, [])
    where = f"{path}.{key}"
    if not isinstance(items, list):
        raise ConfigError(where, "not a list")
    if len(items) > MAX_MODIFIERS:
        raise ConfigError(where, f"{len(items)} are more than {MAX_MODIFIERS}")
    return [(f"{where}[{number}]", item) for number, item in enumerate(items)]


def _object(item: Any, path: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """`item`, where it is an object that has all keys of `needed` and no unknown ones."""
    if not isinstance(item, dict):
        raise ConfigError(path, "a JSON object, { }, belongs here")
    for key in item:
        if key not in needed and key not in optional:
            raise ConfigError(path, f"{key!r:.100} is none of {', '.join(needed + optional)}")
    for key in needed:
        if key not in item:
            raise ConfigError(path, f"{key} is missing")
    return item


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is there twice in one object")
    return result
