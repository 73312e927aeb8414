"""The AML builder, against the byte sequences of ACPI 6.5, chapter 20."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.x86.acpi import aml


def read_pkg_length(data):
    """(length, bytes that it takes), as 20.2.4 has it."""
    following = data[0] >> 6
    if not following:
        return data[0] & 0x3F, 1
    return (data[0] & 0xF) | int.from_bytes(data[1 : 1 + following], "little") << 4, 1 + following


def read_integer(data):
    if len(data) == 1:
        return {0: 0, 1: 1, 0xFF: 2**64 - 1}[data[0]]
    sizes = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}
    assert len(data) == 1 + sizes[data[0]]
    return int.from_bytes(data[1:], "little")


@pytest.mark.parametrize(
    ("length", "encoded"),
    [
        (0, "00"),
        (0x3F, "3f"),
        (0x40, "40 04"),
        (0xFFF, "4f ff"),
        (0x1000, "80 00 01"),
        (0xFFFFF, "8f ff ff"),
        (0x100000, "c0 00 00 01"),
        (0xFFFFFFF, "cf ff ff ff"),
    ],
)
def test_pkg_length_at_its_boundaries(length, encoded):
    assert aml.pkg_length(length) == bytes.fromhex(encoded)


@pytest.mark.parametrize("length", [-1, 1 << 28])
def test_a_length_that_no_package_has(length):
    with pytest.raises(ValueError, match="package"):
        aml.pkg_length(length)


@given(st.integers(0, aml.MAX_PACKAGE))
def test_pkg_length_reads_back(length):
    encoded = aml.pkg_length(length)
    assert read_pkg_length(encoded) == (length, len(encoded))


# Around each size at which the length itself takes one byte more.
@pytest.mark.parametrize("size", [0, 1, 0x3D, 0x3E, 0x3F, 0x40, 0xFFC, 0xFFD, 0xFFE, 0xFFF, 0xFFFFB, 0xFFFFC, 0xFFFFD])
def test_a_package_counts_its_length_and_its_body(size):
    encoded = aml.package(b"\x10", bytes(size))
    length, taken = read_pkg_length(encoded[1:])
    assert length == len(encoded) - 1 == taken + size
    # And no byte more than it needs.
    assert taken == 1 or size + taken - 1 > (0x3F, 0xFFF, 0xFFFFF)[taken - 2]


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a 02"),
        (0xFF, "0a ff"),
        (0x100, "0b 00 01"),
        (0xFFFF, "0b ff ff"),
        (0x10000, "0c 00 00 01 00"),
        (0xFFFFFFFF, "0c ff ff ff ff"),
        (0x100000000, "0e 00 00 00 00 01 00 00 00"),
        (2**64 - 1, "ff"),
    ],
)
def test_integers_take_the_least_bytes(value, encoded):
    assert aml.Integer(value) == bytes.fromhex(encoded)


@given(st.integers(0, 2**64 - 1))
def test_integers_read_back(value):
    assert read_integer(aml.Integer(value)) == value


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_number_that_is_no_integer(value):
    with pytest.raises(ValueError, match="64-bit"):
        aml.Integer(value)


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("_HID", b"_HID"),
        ("GED", b"GED_"),
        ("\\", b"\\\0"),
        ("\\_SB", b"\\_SB_"),
        ("^", b"^\0"),
        ("^^A", b"^^A___"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("A.B.C", b"\x2f\x03A___B___C___"),
    ],
)
def test_paths(path, encoded):
    assert aml.Path(path) == encoded


@pytest.mark.parametrize(
    "path", ["", "ABCDE", "1ABC", "abcd", "A B", "A..B", ".A", "A.", "^\\A", "\\\\A", "\xc4", "A" + ".A" * 255]
)
def test_what_is_no_path(path):
    with pytest.raises(ValueError, match="no name"):
        aml.Path(path)


@pytest.mark.parametrize("text", ["a\0b", "\xfc"])
def test_what_is_no_string(text):
    with pytest.raises(ValueError, match="characters"):
        aml.String(text)


@pytest.mark.parametrize(
    ("made", "encoded"),
    [
        (aml.String("AB"), "0d 41 42 00"),
        (aml.Name("_UID", 1), "08 5f554944 01"),
        (aml.Name("_DDN", "X"), "08 5f44444e 0d 58 00"),
        (aml.Name("ADDR", aml.Path("X")), "08 41444452 585f5f5f"),
        (aml.Scope("\\_SB", aml.Name("_UID", 0)), "10 0c 5c5f53425f 08 5f55494400"),
        (aml.Device("A"), "5b82 05 415f5f5f"),
        (aml.Method("M", 2, aml.Return(aml.Arg1), flags=aml.Serialized), "14 08 4d5f5f5f 0a a4 69"),
        (aml.Buffer(b"\1\2"), "11 05 0a 02 01 02"),
        (aml.Buffer(b""), "11 02 00"),
        (aml.Package(5, "A", aml.Package()), "12 0a 03 0a05 0d4100 12 02 00"),
        (aml.EisaId("PNP0501"), "0c 41d00501"),
        (aml.ToUuid("33DB4D5B-1FF7-401C-9657-7441C03DD766"), "11 13 0a 10 5b4ddb33 f71f 1c40 9657 7441c03dd766"),
        (aml.Store(aml.Path("S"), aml.Local0), "70 535f5f5f 60"),
        (aml.Store(1, "T"), "70 01 545f5f5f"),
        (aml.Notify("D", 0x80), "86 445f5f5f 0a80"),
        (aml.And(aml.Local0, 4), "7b 60 0a04 00"),
        (aml.Or(aml.Local0, 4, aml.Local1), "7d 60 0a04 61"),
        (aml.Equal(aml.Arg0, 0), "93 68 00"),
        (aml.If(aml.Arg0, aml.Return(1)), "a0 04 68 a4 01"),
        (aml.Else(aml.Return(0)), "a1 03 a4 00"),
        (aml.OperationRegion("R", aml.SystemIO, 0x60C, 1), "5b80 525f5f5f 01 0b0c06 01"),
        (
            aml.Field("R", aml.ByteAcc | aml.Lock | aml.WriteAsZeros, ("F", 8), 0x40, ("G", 1)),
            "5b81 13 525f5f5f 51 465f5f5f 08 00 4004 475f5f5f 01",
        ),
        (aml.CreateDWordField(aml.Arg3, 0, "C"), "8a 6b 00 435f5f5f"),
    ],
)
def test_operators(made, encoded):
    assert made == bytes.fromhex(encoded)


@pytest.mark.parametrize("identifier", ["PNP050", "pnp0501", "PN10501", "PNP050G", "PNP05011", ""])
def test_what_is_no_eisa_id(identifier):
    with pytest.raises(ValueError):  # noqa: PT011 -- int() words one of them
        aml.EisaId(identifier)


@pytest.mark.parametrize(
    "make",
    [
        lambda: aml.Package(*[0] * 256),
        lambda: aml.Method("M", 8),
        lambda: aml.Field("R", 0, ("A.B", 1)),
        lambda: aml.ToUuid("33DB4D5B-1FF7-401C-9657"),
    ],
)
def test_what_has_no_encoding(make):
    with pytest.raises(ValueError):  # noqa: PT011 -- each has words of its own
        make()
