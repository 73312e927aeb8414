from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.boot.elf import Elf
from kvmpy.boot.entry import PROTECTED
from kvmpy.boot.place import BOOT_INFO_MAX, OURS, Module
from kvmpy.boot.pvh import load_pvh
from kvmpy.boot.recognise import pvh_entry
from kvmpy.errors import ConfigError, ImageError, KvmpyError
from kvmpy.memory import GuestMemory
from kvmpy.testing.images import ElfSegment, elf_image, elf_note
from kvmpy.units import GIB, MIB
from kvmpy.x86 import layout

CODE = ElfSegment(2 * MIB, b"kernel code", memsz=0x2000)
FIELDS = "magic version flags nr_modules modlist cmdline rsdp memmap memmap_entries reserved"


def note(entry: int = 2 * MIB, size: int = 8) -> bytes:
    return elf_note(b"Xen", 18, entry.to_bytes(size, "little"))


KERNEL = elf_image([CODE], entry=0, notes=note())


@pytest.fixture
def memory():
    with GuestMemory(8 * MIB) as memory:
        yield memory


def load(memory: GuestMemory, kernel: bytes = KERNEL, **options):
    return load_pvh(memory, memoryview(kernel), **options)


def start_info(memory: GuestMemory, entry) -> dict[str, int]:
    values = struct.unpack("<IIIIQQQQII", memory.read(entry.registers["rbx"], 56))
    return dict(zip(FIELDS.split(), values, strict=True))


def text(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, BOOT_INFO_MAX).partition(b"\0")[0]


@pytest.mark.parametrize(("bits", "size"), [(32, 4), (64, 4), (64, 8)])
def test_entry_is_that_of_the_note(memory, bits, size):
    entry = load(memory, elf_image([CODE], entry=0, bits=bits, notes=note(2 * MIB + 4, size)))
    assert (entry.mode, entry.rip, entry.cr3) == (PROTECTED, 2 * MIB + 4, 0)
    assert memory.read(2 * MIB, 11) == b"kernel code"
    assert entry.description == f"PVH, {bits}-bit ELF, entry at 0x200004"


def test_start_info(memory):
    fields = start_info(memory, load(memory, cmdline="one two", rsdp=0xE0000))
    assert (fields["magic"], fields["version"], fields["flags"]) == (0x336EC578, 1, 0)
    assert (fields["nr_modules"], fields["modlist"], fields["rsdp"]) == (0, 0, 0xE0000)
    assert text(memory, fields["cmdline"]) == b"one two"


def test_the_memory_map_has_all_ram():
    with GuestMemory(4 * GIB) as memory:
        fields = start_info(memory, load(memory))
        table = memory.read(fields["memmap"], fields["memmap_entries"] * 24)
    ram = [(start, size) for start, size, kind, _ in struct.iter_unpack("<QQII", table) if kind == 1]
    assert ram == [(0, layout.EBDA), (MIB, 3 * GIB - MIB), (4 * GIB, GIB)]


def test_modules_lie_at_the_end_of_ram(memory):
    modules = [Module(memoryview(b"first")), Module(memoryview(b"second"), "second arg")]
    fields = start_info(memory, load(memory, modules=modules))
    assert fields["nr_modules"] == 2
    first, second = struct.iter_unpack("<QQQQ", memory.read(fields["modlist"], 64))
    assert first == (8 * MIB - 0x1000, 5, 0, 0)
    assert second[:2] == (8 * MIB - 0x2000, 6)
    assert memory.read(second[0], 6) == b"second"
    assert text(memory, second[2]) == b"second arg"


def test_modules_do_not_lie_on_the_kernel(memory):
    with pytest.raises(ConfigError, match=r"initrd.*more memory"):
        load(memory, modules=[Module(memoryview(bytes(6 * MIB)))])


def test_a_file_without_the_note(memory):
    with pytest.raises(ImageError, match="no PVH entry"):
        load(memory, elf_image([CODE]))


@pytest.mark.parametrize("entry", [0, 2 * MIB - 1, 2 * MIB + 0x2000, (1 << 64) - 1])
def test_an_entry_outside_of_the_kernel(memory, entry):
    with pytest.raises(ImageError, match="lies outside"):
        load(memory, elf_image([CODE], notes=note(entry)))


@pytest.mark.parametrize("size", [0, 1, 5, 16])
def test_a_note_of_a_strange_size(size):
    with pytest.raises(ImageError, match="not 4 or 8"):
        pvh_entry(Elf(memoryview(elf_image([CODE], notes=elf_note(b"Xen", 18, bytes(size))))))


@pytest.mark.parametrize("other", [elf_note(b"Xen", 17, bytes(8)), elf_note(b"Ken", 18, bytes(8)), b""])
def test_other_notes_are_not_it(other):
    assert pvh_entry(Elf(memoryview(elf_image([CODE], notes=other)))) is None


@pytest.mark.parametrize(("low", "high", "what"), OURS)
def test_nothing_is_loaded_onto_what_is_ours(memory, low, high, what):
    for address in (low - 3, high - 1):
        segments = [CODE, ElfSegment(address, b"data")]
        with pytest.raises(ImageError, match=what):
            load(memory, elf_image(segments, notes=note()))


def test_segments_beside_ours_are_fine(memory):
    segments = [CODE, *(ElfSegment(high, b"data") for _, high, _ in OURS)]
    load(memory, elf_image(segments, notes=note()))
    assert all(memory.read(high, 4) == b"data" for _, high, _ in OURS)


def test_segments_that_leave_ram(memory):
    with pytest.raises(ImageError, match="RAM below 4 GiB ends"):
        load(memory, elf_image([ElfSegment(2 * MIB, b"", memsz=3 * GIB)], notes=note()))
    with pytest.raises(ConfigError, match="at least 9M"):
        load(memory, elf_image([ElfSegment(2 * MIB, b"", memsz=7 * MIB)], notes=note()))


@given(
    segments=st.lists(
        st.builds(ElfSegment, st.integers(0, 5 * MIB) | st.integers(0, (1 << 64) - 1), st.binary(max_size=64)),
        max_size=4,
    ),
    entry=st.integers(0, 5 * MIB),
)
def test_no_file_leads_out_of_ram_or_onto_ours(segments, entry):
    with GuestMemory(4 * MIB) as memory:
        try:
            loaded = load(memory, elf_image(segments, notes=note(entry)))
        except KvmpyError:
            return
        assert memory.region_of(loaded.rip, 1)
        assert not any(low <= loaded.rip < high for low, high, _ in OURS)
        assert start_info(memory, loaded)["magic"] == 0x336EC578
