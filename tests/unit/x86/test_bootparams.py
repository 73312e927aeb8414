from __future__ import annotations

import itertools
import struct

import pytest

from kvmpy.errors import ConfigError
from kvmpy.memory import GuestMemory
from kvmpy.units import GIB, KIB, MIB
from kvmpy.x86 import layout
from kvmpy.x86.bootparams import E820_RAM, E820_RESERVED, e820, synthetic_header, write_zero_page

HEADER = synthetic_header(2047, 0x7FFFFFFF)


@pytest.fixture
def memory():
    with GuestMemory(2 * MIB) as memory:
        yield memory


def u32(page: bytes, offset: int) -> int:
    return struct.unpack_from("<I", page, offset)[0]


def u64(page: bytes, offset: int) -> int:
    return struct.unpack_from("<Q", page, offset)[0]


def zero_page(memory: GuestMemory, header: bytes = HEADER, **arguments) -> bytes:
    arguments.setdefault("table", e820(memory.regions))
    return memory.read(write_zero_page(memory, header, **arguments), 0x1000)


def table_of(size: int) -> list[tuple[int, int, int]]:
    with GuestMemory(size) as memory:
        return e820(memory.regions)


@pytest.mark.parametrize("size", [64 * KIB, 640 * KIB, MIB, 2 * MIB, 3 * GIB, 5 * GIB])
def test_e820_rises_and_does_not_overlap(size):
    table = table_of(size)
    for (start, length, _), (following, _, _) in itertools.pairwise(table):
        assert start + length <= following
    assert all(length > 0 for _, length, _ in table)


@pytest.mark.parametrize("size", [64 * KIB, 2 * MIB, 3 * GIB, 5 * GIB])
def test_e820_ram_is_ram(size):
    with GuestMemory(size) as memory:
        for start, length, kind in e820(memory.regions):
            if kind == E820_RAM:
                memory.region_of(start, length)


def test_e820_has_all_ram_but_what_is_reserved_below_1_mib():
    ram = sum(length for _, length, kind in table_of(5 * GIB) if kind == E820_RAM)
    assert ram == 5 * GIB - (MIB - layout.EBDA)


def test_e820_goes_around_the_hole():
    ram = [(start, length) for start, length, kind in table_of(5 * GIB) if kind == E820_RAM]
    assert ram == [(0, 0x9FC00), (MIB, 3 * GIB - MIB), (4 * GIB, 2 * GIB)]


@pytest.mark.parametrize("start", [layout.EBDA, layout.RSDP, layout.MP_TABLE, layout.IDENTITY_MAP, layout.TSS])
def test_e820_reserves_what_is_not_the_guests(start):
    found = [kind for base, length, kind in table_of(2 * MIB) if base <= start < base + length]
    assert found == [E820_RESERVED]


def test_zero_page_has_the_table(memory):
    page = zero_page(memory)
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(page[0x1E8])]
    assert entries == e820(memory.regions)


def test_table_that_is_too_long(memory):
    with pytest.raises(ConfigError, match="129 e820 entries"):
        zero_page(memory, table=[(0, 1, 1)] * 129)


def test_setup_header_is_copied(memory):
    header = bytearray(range(1, 108))
    page = zero_page(memory, bytes(header))
    # but for what the loader fills in
    for offset in (0x1F1, 0x202, 0x206, 0x234, 0x258, 0x1F1 + 106):
        assert page[offset] == header[offset - 0x1F1]
    assert page[0x1F1 + 107] == 0


def test_header_that_is_too_long_does_not_reach_the_e820_table(memory):
    page = zero_page(memory, b"\xff" * 4096)
    assert page[0x290:0x2D0] == bytes(0x40)
    assert page[0x28F] == 0xFF


def test_loader_fields(memory):
    page = zero_page(memory)
    assert page[0x210] == 0xFF
    assert page[0x211] == 0x01
    assert u32(page, 0x228) == layout.COMMAND_LINE


def test_loadflags_drop_what_only_a_real_mode_loader_means(memory):
    header = bytearray(HEADER)
    header[0x211 - 0x1F1] = 0xC0
    assert zero_page(memory, bytes(header))[0x211] == 0x01


def test_no_sentinel(memory):
    # A byte here makes the kernel clear half of the page (sanitize_boot_params()).
    assert zero_page(memory)[0x1EF] == 0


def test_initrd_is_split_into_halves(memory):
    page = zero_page(memory, initrd=(0x1_2345_6000, 0x2_0000_0001))
    assert (u32(page, 0x218), u32(page, 0x0C0)) == (0x23456000, 1)
    assert (u32(page, 0x21C), u32(page, 0x0C4)) == (1, 2)


def test_rsdp_address(memory):
    assert u64(zero_page(memory, rsdp=layout.RSDP), 0x070) == 0xE0000


def test_random_seed_hangs_on_the_setup_data_list(memory):
    page = zero_page(memory, rng=lambda size: bytes(range(size)))
    address = u64(page, 0x250)
    following, kind, length = struct.unpack("<QII", memory.read(address, 16))
    assert (following, kind, length) == (0, 9, 32)
    assert memory.read(address + 16, length) == bytes(range(32))


def test_no_seed_no_list(memory):
    assert u64(zero_page(memory, rng=None), 0x250) == 0


def test_synthetic_header_says_what_a_bzimage_would():
    page = bytes(0x1F1) + HEADER
    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x202:0x206] == b"HdrS"
    assert u32(page, 0x22C) == 0x7FFFFFFF
    assert u32(page, 0x238) == 2047
