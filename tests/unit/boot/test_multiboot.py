from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.boot.entry import PROTECTED
from kvmpy.boot.multiboot import INFO, load_multiboot
from kvmpy.boot.place import BOOT_INFO, BOOT_INFO_MAX, OURS, Module
from kvmpy.boot.recognise import find_header
from kvmpy.errors import ConfigError, ImageError, KvmpyError
from kvmpy.memory import GuestMemory
from kvmpy.testing.images import ElfSegment, elf_image, multiboot_header
from kvmpy.units import GIB, MIB
from kvmpy.x86 import layout

KLUDGE = 0x10003
BODY = b"kernel code"


@pytest.fixture
def memory():
    with GuestMemory(8 * MIB) as memory:
        yield memory


def elf(header: bytes = multiboot_header(), *, bits: int = 32, **options) -> bytes:
    return elf_image([ElfSegment(2 * MIB, header + BODY, **options)], bits=bits, entry=2 * MIB + len(header))


def kludge(
    *, header: int = 2 * MIB, start: int = 2 * MIB, end: int = 0, bss: int = 0, entry: int = 2 * MIB + 32
) -> bytes:
    return multiboot_header(KLUDGE, (header, start, end, bss, entry)) + BODY


def load(memory: GuestMemory, kernel: bytes, **options):
    return load_multiboot(memory, memoryview(kernel), **options)


def info(memory: GuestMemory, entry) -> dict[str, int]:
    names = "flags mem_lower mem_upper boot_device cmdline mods_count mods_addr mmap_length mmap_addr"
    names += " drives_length drives_addr config_table boot_loader_name apm_table"
    return dict(zip(names.split(), INFO.unpack(memory.read(entry.registers["rbx"], INFO.size)), strict=True))


def text(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, BOOT_INFO_MAX).partition(b"\0")[0]


@pytest.mark.parametrize("bits", [32, 64])
def test_an_elf_file_is_entered_in_protected_mode(memory, bits):
    entry = load(memory, elf(bits=bits))
    assert (entry.mode, entry.rip, entry.registers["rax"]) == (PROTECTED, 2 * MIB + 12, 0x2BADB002)
    assert memory.read(entry.rip, len(BODY)) == BODY
    assert entry.description == f"multiboot, {bits}-bit ELF, entry at 0x20000c"


def test_addresses_in_the_header_win_over_elf(memory):
    image = elf(multiboot_header(KLUDGE, (3 * MIB, 3 * MIB, 0, 0, 3 * MIB + 32)))
    assert load(memory, image).rip == 3 * MIB + 32
    assert memory.read(3 * MIB + 32, len(BODY)) == BODY


def test_a_header_inside_of_the_file_loads_what_lies_before_it(memory):
    image = b"unloaded" + b"before" + bytes(2) + kludge(header=2 * MIB + 8)
    load(memory, image)
    assert memory.read(2 * MIB, 6) == b"before"
    assert memory.read(2 * MIB - 8, 8) == bytes(8)


def test_load_end_bounds_what_is_loaded(memory):
    load(memory, kludge(end=2 * MIB + 32 + 6))
    assert memory.read(2 * MIB + 32, len(BODY)) == b"kernel".ljust(len(BODY), b"\0")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"header": 2 * MIB - 4}, "before the file's start"),
        ({"header": 2 * MIB + 4}, "before the file's start"),
        ({"end": 2 * MIB - 1}, "which the file does not have"),
        ({"end": 2 * MIB + 1000}, "which the file does not have"),
        ({"bss": 2 * MIB + 8}, "before the loaded data's end"),
        ({"entry": 2 * MIB - 1}, "entry point"),
        ({"entry": 2 * MIB + 43}, "entry point"),
        ({"bss": 3 * GIB + 1}, "RAM below 4 GiB ends"),
        ({"header": 0x1000, "start": 0x1000, "entry": 0x1020}, "the GDT"),
        ({"header": 0x300, "start": 0x300, "bss": 0x40F, "entry": 0x320}, "the BIOS data area"),
        ({"header": 0x10000, "start": 0x10000, "bss": 0x20001, "entry": 0x10020}, "the boot information"),
        ({"header": 0xF0000, "start": 0xF0000, "entry": 0xF0020}, "the BIOS area"),
        ({"header": 0x9FFF0, "start": 0x9FFF0, "entry": 0xA0010}, "the extended BIOS data area"),
    ],
)
def test_addresses_that_make_no_sense(memory, fields, message):
    with pytest.raises(ImageError, match=message):
        load(memory, kludge(**fields))


def test_elf_segments_may_not_lie_on_ours(memory):
    segments = [ElfSegment(2 * MIB, multiboot_header()), ElfSegment(BOOT_INFO + 0x100, b"data")]
    with pytest.raises(ImageError, match="the boot information"):
        load(memory, elf_image(segments, bits=32))


def test_a_file_header_right_before_1_mib_is_fine(memory):
    segments = [ElfSegment(MIB - 0x1000, multiboot_header().ljust(0x1000, b"\0")), ElfSegment(MIB, BODY)]
    assert load(memory, elf_image(segments, bits=32, entry=MIB)).rip == MIB


def test_too_little_memory_says_how_much_is_needed(memory):
    with pytest.raises(ConfigError, match="memory: the kernel needs at least 9M"):
        load(memory, kludge(bss=8 * MIB + 1))


@pytest.mark.parametrize("flags", [1 << 3, 1 << 15, 0x8003])
def test_requirements_that_nobody_knows_are_refused(memory, flags):
    with pytest.raises(ImageError, match="requires features"):
        load(memory, elf(multiboot_header(flags)))


def test_optional_features_that_nobody_knows_are_left_alone(memory):
    assert load(memory, elf(multiboot_header(0xFFFE0003))).rip


def test_a_wish_for_video_is_told_to_the_user(memory):
    assert "no video" in load(memory, elf(multiboot_header(7))).notes[0]
    assert not load(memory, elf()).notes


def test_a_kludge_header_that_is_cut_short(memory):
    with pytest.raises(ImageError, match="cut short"):
        load(memory, multiboot_header(KLUDGE) + b"....")


def test_a_file_without_a_header(memory):
    with pytest.raises(ImageError, match="no multiboot header"):
        load(memory, elf(b""))


def test_memory_sizes(memory):
    fields = info(memory, load(memory, elf()))
    assert fields["flags"] == 0x24D
    assert (fields["mem_lower"], fields["mem_upper"]) == (639, 7 * 1024)


def test_upper_memory_ends_at_the_first_hole():
    with GuestMemory(4 * GIB) as memory:
        assert info(memory, load(memory, elf()))["mem_upper"] == (3 * GIB - MIB) >> 10


def test_the_memory_map_has_all_ram():
    with GuestMemory(4 * GIB) as memory:
        fields = info(memory, load(memory, elf()))
        table = memory.read(fields["mmap_addr"], fields["mmap_length"])
    entries = list(struct.iter_unpack("<IQQI", table))
    assert {entry[0] for entry in entries} == {20}
    assert [entry[1:3] for entry in entries if entry[3] == 1] == [
        (0, layout.EBDA),
        (MIB, 3 * GIB - MIB),
        (4 * GIB, GIB),
    ]


def test_the_command_line_begins_with_the_name(memory):
    assert text(memory, info(memory, load(memory, elf(), name="a/kernel", cmdline="one two"))["cmdline"]) == (
        b"a/kernel one two"
    )


def test_no_command_line_is_the_name_alone(memory):
    assert text(memory, info(memory, load(memory, elf(), name="k"))["cmdline"]) == b"k"


def test_a_command_line_without_room(memory):
    with pytest.raises(ConfigError, match="append"):
        load(memory, elf(), cmdline="x" * BOOT_INFO_MAX)


def test_the_loader_says_its_name(memory):
    assert text(memory, info(memory, load(memory, elf()))["boot_loader_name"]) == b"kvmpy"


def test_modules_lie_on_pages_behind_the_kernel(memory):
    modules = [Module(memoryview(b"first" * 1000), "first arg"), Module(memoryview(b"second"), "second")]
    fields = info(memory, load(memory, elf(memsz=0x3001), modules=modules))
    assert fields["mods_count"] == 2
    (start, end, name, _), (start2, end2, name2, _) = struct.iter_unpack("<IIII", memory.read(fields["mods_addr"], 32))
    assert (start, start2) == (2 * MIB + 0x4000, 2 * MIB + 0x6000)
    assert memory.read(start, end - start) == b"first" * 1000
    assert memory.read(start2, end2 - start2) == b"second"
    assert (text(memory, name), text(memory, name2)) == (b"first arg", b"second")


def test_modules_of_a_kernel_in_low_memory_lie_above_1_mib(memory):
    fields = info(
        memory, load(memory, kludge(header=0x8000, start=0x8000, entry=0x8020), modules=[Module(memoryview(b"m"))])
    )
    assert struct.unpack("<I", memory.read(fields["mods_addr"], 4)) == (MIB,)


def test_modules_without_room(memory):
    with pytest.raises(ConfigError, match=r"initrd.*more memory"):
        load(memory, elf(), modules=[Module(memoryview(bytes(7 * MIB)))])


@pytest.mark.parametrize("offset", [0, 4, 8180])
def test_a_header_is_found_on_any_fourth_byte(offset):
    assert find_header(memoryview(bytes(offset) + multiboot_header())) == offset


@pytest.mark.parametrize("offset", [2, 8184, 8192])
def test_a_header_elsewhere_is_none(offset):
    assert find_header(memoryview(bytes(offset) + multiboot_header())) is None


def test_a_wrong_checksum_is_no_header_and_the_search_goes_on():
    assert find_header(memoryview(multiboot_header(checksum=0) + multiboot_header())) == 12


words = st.integers(0, 0xFFFFFFFF)
places = st.sampled_from([0, 0x1000, 0x20000, 0xA0000, MIB, 2 * MIB, 4 * MIB])
near = st.builds(lambda place, offset: place + offset & 0xFFFFFFFF, places, st.integers(-64, 64))


@given(addresses=st.lists(words | near, max_size=5), flags=words | st.just(KLUDGE), body=st.binary(max_size=64))
def test_no_header_leads_out_of_ram_or_onto_ours(addresses, flags, body):
    with GuestMemory(4 * MIB) as memory:
        try:
            entry = load(memory, multiboot_header(flags, addresses) + body)
        except KvmpyError:
            return
        assert memory.region_of(entry.rip, 1)
        assert not any(low <= entry.rip < high for low, high, _ in OURS)
        assert info(memory, entry)["flags"] == 0x24D
