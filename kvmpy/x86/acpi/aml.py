"""AML, the byte code of ACPI's tables (ACPI 6.5, chapter 20), written so that it reads like its source language, ASL.

Each function is named after the ASL operator that it encodes, and returns the bytes:

    Device("COM1", Name("_HID", EisaId("PNP0501")), Name("_UID", 1))

Where a value is wanted, an `int` becomes an integer, a `str` a string, and `bytes` are taken as AML that is encoded
already; where a name is wanted, a `str` is its path.  `Path` makes a value of a name.  What has no encoding is a
`ValueError`: a mistake in the caller, not in what a user asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Term: TypeAlias = int | str | bytes

_BYTE_PREFIX = 0x0A
_WORD_PREFIX = 0x0B
_DWORD_PREFIX = 0x0C
_QWORD_PREFIX = 0x0E
_STRING_PREFIX = b"\x0d"
_DUAL_NAME_PREFIX = b"\x2e"
_MULTI_NAME_PREFIX = b"\x2f"
_NULL_NAME = b"\x00"

# RegionSpace (20.2.5.2).
SystemMemory = 0
SystemIO = 1

# AccessType, LockRule and UpdateRule of a Field's flags (20.2.5.2).
AnyAcc, ByteAcc, WordAcc, DWordAcc, QWordAcc = range(5)
NoLock, Lock = 0x00, 0x10
Preserve, WriteAsOnes, WriteAsZeros = 0x00, 0x20, 0x40

NotSerialized, Serialized = 0x00, 0x08

# LocalObj and ArgObj (20.2.6).
Local0, Local1, Local2, Local3, Local4, Local5, Local6, Local7 = (bytes((0x60 + n,)) for n in range(8))
Arg0, Arg1, Arg2, Arg3, Arg4, Arg5, Arg6 = (bytes((0x68 + n,)) for n in range(7))

_NAME_START = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_NAME_CHARS = _NAME_START | frozenset("0123456789")

MAX_INTEGER = (1 << 64) - 1
MAX_PACKAGE = (1 << 28) - 1


def Integer(value: int) -> bytes:
    """The shortest constant that is `value`, 0 to 2**64 - 1 (20.2.3)."""
    if not 0 <= value <= MAX_INTEGER:
        raise ValueError(f"{value} is no 64-bit integer")
    if value <= 1:
        return bytes((value,))  # ZeroOp, OneOp
    if value == MAX_INTEGER:
        return b"\xff"  # OnesOp
    for prefix, size in ((_BYTE_PREFIX, 1), (_WORD_PREFIX, 2), (_DWORD_PREFIX, 4)):
        if value >> 8 * size == 0:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    return bytes((_QWORD_PREFIX,)) + value.to_bytes(8, "little")


def String(text: str) -> bytes:
    """A string of ASCII characters without NUL."""
    if "\0" in text or not text.isascii():
        raise ValueError(f"{text!r} has characters that AML has not")
    return _STRING_PREFIX + text.encode() + b"\0"


def Path(path: str) -> bytes:
    """A NameString (20.2.2), as `_HID`, `\\_SB.PCI0` or `^^PCI0`; short segments are filled up with underscores."""
    names = path.lstrip("\\^")
    prefix = path[: len(path) - len(names)]
    if "\\" in prefix and prefix != "\\":
        raise ValueError(f"{path!r} is no name: the root stands first and alone")
    segments = names.split(".") if names else []
    for segment in segments:
        if not (1 <= len(segment) <= 4 and segment[0] in _NAME_START and _NAME_CHARS.issuperset(segment)):
            raise ValueError(f"{segment!r} is no name of up to four letters, digits and underscores")
    encoded = "".join(segment.ljust(4, "_") for segment in segments).encode()
    if len(segments) > 255 or not path:
        raise ValueError(f"{path!r} is no name")
    if len(segments) == 2:
        encoded = _DUAL_NAME_PREFIX + encoded
    elif len(segments) > 2:
        encoded = _MULTI_NAME_PREFIX + bytes((len(segments),)) + encoded
    return prefix.encode() + (encoded or _NULL_NAME)


def pkg_length(length: int) -> bytes:
    """A PkgLength that says `length`, up to 2**28 - 1 (20.2.4)."""
    if not 0 <= length <= MAX_PACKAGE:
        raise ValueError(f"{length} is no length of a package")
    if length <= 0x3F:
        return bytes((length,))
    following = 1 if length <= 0xFFF else 2 if length <= 0xFFFFF else 3
    return bytes((following << 6 | length & 0xF,)) + (length >> 4).to_bytes(following, "little")


def package(opcode: bytes, body: bytes) -> bytes:
    """`opcode`, then `body` behind a PkgLength that counts itself and `body`."""
    own = 1
    while len(pkg_length(len(body) + own)) > own:
        own += 1
    return opcode + pkg_length(len(body) + own) + body


def term(value: Term) -> bytes:
    """`value` as AML: see the top of this module."""
    if isinstance(value, bytes):
        return value
    return String(value) if isinstance(value, str) else Integer(value)


def _target(name: str | bytes) -> bytes:
    """A SuperName: the path of an object, or a local or argument."""
    return Path(name) if isinstance(name, str) else name


# Objects of the namespace.


def Name(name: str, value: Term) -> bytes:
    """`name` stands for `value`."""
    return b"\x08" + Path(name) + term(value)


def Scope(name: str, *terms: bytes) -> bytes:
    """Terms in the scope of an object that there is already."""
    return package(b"\x10", Path(name) + b"".join(terms))


def Device(name: str, *terms: bytes) -> bytes:
    """A device and what belongs to it."""
    return package(b"\x5b\x82", Path(name) + b"".join(terms))


def Method(name: str, arguments: int, *terms: bytes, flags: int = NotSerialized) -> bytes:
    """A method that takes up to seven `arguments`."""
    if not 0 <= arguments <= 7:
        raise ValueError(f"a method has no {arguments} arguments")
    return package(b"\x14", Path(name) + bytes((arguments | flags,)) + b"".join(terms))


def OperationRegion(name: str, space: int, offset: Term, length: Term) -> bytes:
    """`length` bytes at `offset` of an address space, as SystemIO."""
    return b"\x5b\x80" + Path(name) + bytes((space,)) + term(offset) + term(length)


def Field(region: str, flags: int, *units: tuple[str, int] | int) -> bytes:
    """Names for the bits of a region, from bit 0 on: (name, bits), or the number of bits to leave out.

    `flags` is one AccessType, LockRule and UpdateRule each, or'ed together.
    """
    body = b""
    for unit in units:
        if isinstance(unit, int):
            body += b"\x00" + pkg_length(unit)
        else:
            name, bits = unit
            segment = Path(name)
            if len(segment) != 4:
                raise ValueError(f"a field's name is one segment, not {name!r}")
            body += segment + pkg_length(bits)
    return package(b"\x5b\x81", Path(region) + bytes((flags,)) + body)


def CreateDWordField(source: Term, index: Term, name: str) -> bytes:
    """Names the 32 bits from byte `index` of a buffer on."""
    return b"\x8a" + term(source) + term(index) + Path(name)


# Data.


def Buffer(data: bytes) -> bytes:
    """A buffer that holds `data`."""
    return package(b"\x11", Integer(len(data)) + data)


def Package(*elements: Term) -> bytes:
    """A package of up to 255 elements."""
    if len(elements) > 255:
        raise ValueError(f"{len(elements)} elements are more than a package holds")
    return package(b"\x12", bytes((len(elements),)) + b"".join(term(element) for element in elements))


def EisaId(identifier: str) -> bytes:
    """A Plug and Play ID, as `PNP0501`, packed into 32 bits (6.1.5, 19.3.4)."""
    letters, digits = identifier[:3], identifier[3:]
    if not (len(identifier) == 7 and letters.isascii() and letters.isalpha() and letters.isupper()):
        raise ValueError(f"{identifier!r} is no EISA ID")
    packed = int(digits, 16)
    for shift, letter in zip((26, 21, 16), letters, strict=True):
        packed |= (ord(letter) - 0x40) << shift
    return bytes((_DWORD_PREFIX,)) + packed.to_bytes(4, "big")


def ToUuid(text: str) -> bytes:
    """A UUID as the 16 bytes that ACPI makes of it: its first three groups little-endian (19.6.142)."""
    groups = [bytes.fromhex(group) for group in text.split("-")]
    if [len(group) for group in groups] != [4, 2, 2, 2, 6]:
        raise ValueError(f"{text!r} is no UUID")
    return Buffer(b"".join(group[::-1] for group in groups[:3]) + b"".join(groups[3:]))


# Statements and expressions.


def Return(value: Term) -> bytes:
    """Ends the method with `value`."""
    return b"\xa4" + term(value)


def Store(value: Term, target: str | bytes) -> bytes:
    """target = value."""
    return b"\x70" + term(value) + _target(target)


def Notify(target: str | bytes, value: Term) -> bytes:
    """Tells the driver of the device `target`."""
    return b"\x86" + _target(target) + term(value)


def And(left: Term, right: Term, target: str | bytes = _NULL_NAME) -> bytes:
    """left & right, stored to `target` when one is given."""
    return b"\x7b" + term(left) + term(right) + _target(target)


def Or(left: Term, right: Term, target: str | bytes = _NULL_NAME) -> bytes:
    """left | right, stored to `target` when one is given."""
    return b"\x7d" + term(left) + term(right) + _target(target)


def Equal(left: Term, right: Term) -> bytes:
    """left == right."""
    return b"\x93" + term(left) + term(right)


def If(condition: Term, *terms: bytes) -> bytes:
    """The terms, where `condition` is not zero."""
    return package(b"\xa0", term(condition) + b"".join(terms))


def Else(*terms: bytes) -> bytes:
    """The terms, where the `If` right before was not taken."""
    return package(b"\xa1", b"".join(terms))
