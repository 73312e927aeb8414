from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.memory import GuestMemory
from kvmpy.units import GIB, KIB, MIB
from kvmpy.x86.paging import (
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    EFER_NXE,
    PTE_LARGE,
    PTE_NO_EXECUTE,
    PTE_PRESENT,
    PTE_USER,
    PTE_WRITABLE,
    Translation,
    build_identity_map,
    walk,
)

LONG = EFER_LMA | EFER_NXE
P, W, U, L = PTE_PRESENT, PTE_WRITABLE, PTE_USER, PTE_LARGE
RWU = P | W | U


@pytest.fixture
def memory():
    with GuestMemory(4 * MIB) as memory:
        yield memory


def put(memory: GuestMemory, table: int, index: int, entry: int) -> None:
    memory.write(table + index * 8, struct.pack("<Q", entry))


def put32(memory: GuestMemory, table: int, index: int, entry: int) -> None:
    memory.write(table + index * 4, struct.pack("<I", entry))


def walk_long(memory: GuestMemory, linear: int, *, cr4: int = CR4_PAE, efer: int = LONG) -> Translation | None:
    return walk(memory, CR0_PG, 0x1000, cr4, efer, linear)


def walk_pae(memory: GuestMemory, linear: int, *, efer: int = EFER_NXE) -> Translation | None:
    return walk(memory, CR0_PG, 0x1020, CR4_PAE, efer, linear)


def walk_32bit(memory: GuestMemory, linear: int, *, cr4: int = CR4_PSE) -> Translation | None:
    return walk(memory, CR0_PG, 0x1000, cr4, 0, linear)


def four_levels(memory: GuestMemory, *, pml4e: int = RWU, pdpte: int = RWU, pde: int = RWU, pte: int = RWU) -> int:
    """Tables for one address, whose indices are 1, 2, 3, 4; the page is at 0x9000."""
    put(memory, 0x1000, 1, 0x2000 | pml4e)
    put(memory, 0x2000, 2, 0x3000 | pdpte)
    put(memory, 0x3000, 3, 0x4000 | pde)
    put(memory, 0x4000, 4, 0x9000 | pte)
    return 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x123


def test_identity_map_maps_all_of_the_first_4_gib_onto_itself(memory):
    cr3 = build_identity_map(memory, 0x9000)
    for linear in (0, 0x7123, MIB, 4 * MIB + 5, 3 * GIB - 1, 0xFEE00000, 4 * GIB - 1):
        found = walk(memory, CR0_PG, cr3, CR4_PAE, LONG, linear)
        assert found is not None
        assert (found.physical, found.page_size, found.writable) == (linear, 2 * MIB, True)


def test_identity_map_ends_at_4_gib(memory):
    cr3 = build_identity_map(memory, 0x9000)
    assert walk(memory, CR0_PG, cr3, CR4_PAE, LONG, 4 * GIB) is None
    assert walk(memory, CR0_PG, cr3, CR4_PAE, LONG, 512 * GIB) is None


def test_identity_map_takes_six_pages_and_no_more(memory):
    memory.fill(0, MIB, 0xA5)
    build_identity_map(memory, 0x9000)
    assert memory.read(0x8FFF, 1) == b"\xa5"
    assert memory.read(0xF000, 1) == b"\xa5"


def test_without_paging_an_address_is_itself(memory):
    found = walk(memory, 0, 0, 0, 0, 0xFFFFFFF0)
    assert found is not None
    assert found.physical == 0xFFFFFFF0
    assert found.writable
    assert not found.no_execute


def test_4_level_4k_page(memory):
    found = walk_long(memory, four_levels(memory))
    assert found is not None
    assert (found.physical, found.page_size) == (0x9123, 4 * KIB)
    assert (found.writable, found.user, found.no_execute) == (True, True, False)


@pytest.mark.parametrize("level", ["pml4e", "pdpte", "pde", "pte"])
def test_4_level_rights_are_those_of_all_levels_together(memory, level):
    read_only = walk_long(memory, four_levels(memory, **{level: P | U}))
    assert read_only is not None
    assert not read_only.writable
    supervisor = walk_long(memory, four_levels(memory, **{level: P | W}))
    assert supervisor is not None
    assert not supervisor.user
    data = walk_long(memory, four_levels(memory, **{level: RWU | PTE_NO_EXECUTE}))
    assert data is not None
    assert data.no_execute


@pytest.mark.parametrize("level", ["pml4e", "pdpte", "pde", "pte"])
def test_4_level_not_present(memory, level):
    assert walk_long(memory, four_levels(memory, **{level: W | U})) is None


def test_execute_disable_is_reserved_without_nxe(memory):
    linear = four_levels(memory, pde=RWU | PTE_NO_EXECUTE)
    assert walk_long(memory, linear, efer=EFER_LMA) is None


def test_4_level_2m_page(memory):
    linear = four_levels(memory)
    put(memory, 0x3000, 3, 6 * MIB | RWU | L)
    found = walk_long(memory, linear)
    assert found is not None
    assert (found.physical, found.page_size) == (6 * MIB + 0x4123, 2 * MIB)


def test_4_level_1g_page(memory):
    linear = four_levels(memory)
    put(memory, 0x2000, 2, 5 * GIB | RWU | L)
    found = walk_long(memory, linear)
    assert found is not None
    assert (found.physical, found.page_size) == (5 * GIB + 3 * 2 * MIB + 0x4123, GIB)


def test_pat_bit_of_a_large_page_is_no_address_bit(memory):
    linear = four_levels(memory)
    put(memory, 0x3000, 3, 6 * MIB | RWU | L | 1 << 12)
    found = walk_long(memory, linear)
    assert found is not None
    assert found.physical == 6 * MIB + 0x4123


def test_large_page_that_is_not_aligned_is_refused(memory):
    linear = four_levels(memory)
    put(memory, 0x3000, 3, 6 * MIB + 0x2000 | RWU | L)
    assert walk_long(memory, linear) is None


def test_there_are_no_512g_pages(memory):
    assert walk_long(memory, four_levels(memory, pml4e=RWU | L)) is None


def test_software_bits_of_an_entry_are_no_address_bits(memory):
    found = walk_long(memory, four_levels(memory, pte=RWU | 0x7FF << 52))
    assert found is not None
    assert found.physical == 0x9123


@pytest.mark.parametrize("linear", [1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 64, -1])
def test_4_level_address_that_is_not_canonical(memory, linear):
    put(memory, 0x1000, 256, 0x2000 | RWU)
    put(memory, 0x2000, 0, RWU | L)
    assert walk_long(memory, linear) is None


def test_4_level_address_in_the_upper_half(memory):
    put(memory, 0x1000, 511, 0x2000 | RWU)
    put(memory, 0x2000, 510, RWU | L)
    found = walk_long(memory, 0xFFFFFFFF80000123)
    assert found is not None
    assert found.physical == 0x123


def test_5_levels(memory):
    four_levels(memory)
    put(memory, 0x5000, 7, 0x1000 | RWU)
    linear = 7 << 48 | 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x123
    found = walk(memory, CR0_PG, 0x5000, CR4_PAE | CR4_LA57, LONG, linear)
    assert found is not None
    assert (found.physical, found.page_size) == (0x9123, 4 * KIB)


def test_5_level_address_that_is_not_canonical(memory):
    put(memory, 0x1000, 256, 0x2000 | RWU)
    put(memory, 0x2000, 0, 0x3000 | RWU)
    put(memory, 0x3000, 0, RWU | L)
    assert walk_long(memory, 1 << 56, cr4=CR4_PAE | CR4_LA57) is None
    assert walk_long(memory, 0xFF << 56, cr4=CR4_PAE | CR4_LA57) is not None


def test_pcid_and_cache_bits_of_cr3_are_no_address_bits(memory):
    linear = four_levels(memory)
    found = walk(memory, CR0_PG, 0x1000 | 0xFFF, CR4_PAE, LONG, linear)
    assert found is not None
    assert found.physical == 0x9123


def test_tables_outside_of_ram(memory):
    linear = four_levels(memory)
    put(memory, 0x2000, 2, 8 * GIB | RWU)
    assert walk_long(memory, linear) is None
    assert walk(memory, CR0_PG, 8 * GIB, CR4_PAE, LONG, linear) is None


def test_pae_4k_page(memory):
    put(memory, 0x1020, 3, 0x3000 | P)
    put(memory, 0x3000, 5, 0x4000 | RWU)
    put(memory, 0x4000, 6, 9 * GIB | P | U | PTE_NO_EXECUTE)
    found = walk_pae(memory, 3 << 30 | 5 << 21 | 6 << 12 | 0x777)
    assert found is not None
    assert (found.physical, found.page_size) == (9 * GIB + 0x777, 4 * KIB)
    assert (found.writable, found.user, found.no_execute) == (False, True, True)


def test_pae_2m_page(memory):
    put(memory, 0x1020, 0, 0x3000 | P)
    put(memory, 0x3000, 5, 4 * MIB | P | W | L)
    found = walk_pae(memory, 5 << 21 | 0x12345)
    assert found is not None
    assert (found.physical, found.page_size) == (4 * MIB + 0x12345, 2 * MIB)
    assert (found.writable, found.user) == (True, False)


def test_pae_pointer_not_present(memory):
    put(memory, 0x1020, 0, 0x3000)
    put(memory, 0x3000, 0, RWU | L)
    assert walk_pae(memory, 0) is None


def test_32bit_4k_page(memory):
    put32(memory, 0x1000, 0x301, 0x2000 | RWU)
    put32(memory, 0x2000, 0x155, 0xABCDE000 | P | U)
    found = walk_32bit(memory, 0x301 << 22 | 0x155 << 12 | 0xF0F)
    assert found is not None
    assert (found.physical, found.page_size) == (0xABCDEF0F, 4 * KIB)
    assert (found.writable, found.user, found.no_execute) == (False, True, False)


@pytest.mark.parametrize(("pde", "pte"), [(W | U, RWU), (RWU, W | U)])
def test_32bit_not_present(memory, pde, pte):
    put32(memory, 0x1000, 0, 0x2000 | pde)
    put32(memory, 0x2000, 0, 0x3000 | pte)
    assert walk_32bit(memory, 0) is None


def test_32bit_4m_page(memory):
    put32(memory, 0x1000, 1, 0x00C00000 | P | W | L)
    found = walk_32bit(memory, 1 << 22 | 0x2ABCDE)
    assert found is not None
    assert (found.physical, found.page_size) == (0x00C00000 + 0x2ABCDE, 4 * MIB)
    assert (found.writable, found.user) == (True, False)


def test_32bit_4m_page_above_4g(memory):
    put32(memory, 0x1000, 1, 0x00C00000 | 0x5 << 13 | P | L)
    found = walk_32bit(memory, 1 << 22)
    assert found is not None
    assert found.physical == 5 << 32 | 0x00C00000


def test_32bit_4m_page_with_its_reserved_bit(memory):
    put32(memory, 0x1000, 1, 0x00C00000 | 1 << 21 | P | L)
    assert walk_32bit(memory, 1 << 22) is None


def test_32bit_large_bit_means_nothing_without_pse(memory):
    put32(memory, 0x1000, 1, 0x2000 | RWU | L)
    put32(memory, 0x2000, 0, 0x7000 | RWU)
    found = walk_32bit(memory, 1 << 22, cr4=0)
    assert found is not None
    assert (found.physical, found.page_size) == (0x7000, 4 * KIB)


def test_32bit_modes_have_no_wider_addresses(memory):
    assert walk_32bit(memory, 1 << 32) is None
    assert walk(memory, 0, 0, 0, 0, 1 << 32) is None


@given(
    tables=st.binary(min_size=64, max_size=512),
    cr0=st.sampled_from([0, CR0_PG]),
    cr3=st.integers(0, (1 << 64) - 1) | st.integers(0, 0x4000),
    cr4=st.integers(0, (1 << 13) - 1),
    efer=st.sampled_from([0, EFER_NXE, EFER_LMA, LONG]),
    linear=st.integers(-(1 << 65), 1 << 65) | st.integers(0, (1 << 32) - 1),
)
def test_no_tables_and_no_address_make_it_raise(tables, cr0, cr3, cr4, efer, linear):
    with GuestMemory(64 * KIB) as memory:
        memory.write(0, (tables * (64 * KIB // len(tables) + 1))[: 64 * KIB])
        found = walk(memory, cr0, cr3, cr4, efer, linear)
        assert found is None or 0 <= found.physical < 1 << 52
