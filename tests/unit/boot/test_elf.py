from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.boot.elf import EM_386, ET_DYN, MAX_NOTES, MAX_PROGRAM_HEADERS, Elf, is_elf
from kvmpy.errors import ImageError, KvmpyError
from kvmpy.testing.images import KERNEL_BASE, ElfSegment, elf_image, elf_note
from kvmpy.units import MIB

TWO = [ElfSegment(2 * MIB, b"data", memsz=0x2000), ElfSegment(MIB, b"code")]

# Offsets in an ELF64 file: of the header's fields, and of the first program header's.
E_PHOFF, E_PHENTSIZE, E_PHNUM = 0x20, 0x36, 0x38
P_OFFSET, P_PADDR, P_FILESZ, P_MEMSZ = 64 + 8, 64 + 24, 64 + 32, 64 + 40


def parse(data: bytes) -> Elf:
    return Elf(memoryview(data))


def patched(form: str, offset: int, value: int) -> bytes:
    image = bytearray(elf_image(TWO))
    struct.pack_into("<" + form, image, offset, value)
    return bytes(image)


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_by_rising_address(bits):
    file = parse(elf_image(TWO, bits=bits))
    assert file.bits == bits
    assert [(segment.paddr, segment.filesz, segment.memsz) for segment in file.loads] == [
        (MIB, 4, 4),
        (2 * MIB, 4, 0x2000),
    ]
    assert (file.start, file.end) == (MIB, 2 * MIB + 0x2000)


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_lead_to_their_bytes(bits):
    file = parse(elf_image(TWO, bits=bits))
    data = [bytes(file.data[segment.offset : segment.offset + segment.filesz]) for segment in file.loads]
    assert data == [b"code", b"data"]


def test_physical_entry():
    assert parse(elf_image(TWO, entry=MIB + 2)).physical_entry == MIB + 2


@pytest.mark.parametrize(("bits", "base"), [(64, KERNEL_BASE), (32, KERNEL_BASE & 0xFFFFFFFF)])
def test_virtual_entry_is_translated(bits, base):
    assert parse(elf_image(TWO, bits=bits, entry=base + 2 * MIB + 1)).physical_entry == 2 * MIB + 1


@pytest.mark.parametrize("entry", [0, MIB - 1, MIB + 4, (1 << 64) - 1])
def test_entry_outside_of_every_segment(entry):
    with pytest.raises(ImageError, match="entry point"):
        _ = parse(elf_image(TWO, entry=entry)).physical_entry


def test_position_independent_file_and_i386_are_taken():
    assert parse(elf_image(TWO, type=ET_DYN)).loads
    assert parse(elf_image(TWO, bits=32)).machine == EM_386


def test_notes():
    notes = elf_note(b"Xen", 18, b"\xf0\5\0\1") + elf_note(b"GNU", 3, b"abcde") + elf_note(b"", 1, b"")
    found = [(note.name, note.type, bytes(note.desc)) for note in parse(elf_image(TWO, notes=notes)).notes()]
    assert found == [(b"Xen", 18, b"\xf0\5\0\1"), (b"GNU", 3, b"abcde"), (b"", 1, b"")]


@pytest.mark.parametrize("sizes", [(0xFFFFFFFF, 4), (4, 0xFFFFFFFF), (13, 0), (4, 9)])
def test_note_that_runs_out_of_its_segment(sizes):
    notes = struct.pack("<III", *sizes, 1) + b"Xen\0" + bytes(8)
    with pytest.raises(ImageError, match="note"):
        list(parse(elf_image(TWO, notes=notes)).notes())


def test_too_many_notes():
    with pytest.raises(ImageError, match=f"more than {MAX_NOTES} notes"):
        list(parse(elf_image(TWO, notes=bytes(12) * (MAX_NOTES + 1))).notes())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(b"", "not an ELF file", id="empty"),
        pytest.param(b"\x7fELF", "cut short", id="only the magic"),
        pytest.param(elf_image(TWO)[:50], "cut short", id="half a header"),
        pytest.param(elf_image(TWO)[:100], "before its program headers", id="half the program headers"),
        pytest.param(elf_image(TWO)[:-1], "behind the end of the file", id="last byte missing"),
        pytest.param(elf_image(TWO, machine=183), "machine 183", id="for ARM"),
        pytest.param(elf_image(TWO, bits=32, machine=62), "machine 62 with 32 bits", id="x32"),
        pytest.param(elf_image(TWO, type=1), "type 1", id="object file"),
        pytest.param(elf_image([]), "nothing to load", id="no segments"),
        pytest.param(elf_image([ElfSegment(MIB, b"")]), "nothing to load", id="empty segment"),
        pytest.param(patched("B", 4, 3), "class 3", id="class"),
        pytest.param(patched("B", 5, 2), "big-endian", id="big-endian"),
        pytest.param(patched("H", E_PHNUM, 0xFFFF), f"{MAX_PROGRAM_HEADERS} are the most", id="phnum"),
        pytest.param(patched("H", E_PHENTSIZE, 0), "0 bytes each", id="phentsize"),
        pytest.param(patched("Q", E_PHOFF, (1 << 64) - 1), "before its program headers", id="phoff"),
        pytest.param(patched("Q", P_OFFSET, (1 << 64) - 1), "behind the end", id="offset"),
        pytest.param(patched("Q", P_FILESZ, 1 << 40), "behind the end", id="filesz"),
        pytest.param(patched("Q", P_MEMSZ, 3), "make no sense", id="memsz below filesz"),
        pytest.param(patched("Q", P_MEMSZ, (1 << 64) - 1), "make no sense", id="memsz"),
        pytest.param(patched("Q", P_PADDR, (1 << 52) - 1), "make no sense", id="paddr"),
        pytest.param(patched("Q", P_PADDR, MIB + 3), "overlap", id="overlap"),
    ],
)
def test_refused(image, message):
    with pytest.raises(ImageError, match=message):
        parse(image)


def test_is_elf():
    assert is_elf(memoryview(elf_image(TWO)))
    assert not is_elf(memoryview(b"\x7fEL"))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data):
    try:
        file = parse(b"\x7fELF" + data)
        assert file.physical_entry >= 0
        list(file.notes())
    except KvmpyError:
        pass


@given(
    st.sampled_from([32, 64]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_no_changed_bytes_raise_anything_else_or_lead_out_of_the_file(bits, changes):
    image = bytearray(elf_image(TWO, bits=bits, notes=elf_note(b"Xen", 18, b"\0\0\x10\0")))
    for position, value in changes:
        image[position % len(image)] = value
    try:
        file = parse(bytes(image))
        for segment in file.segments:
            assert segment.offset + segment.filesz <= len(image)
        list(file.notes())
    except KvmpyError:
        pass
