"""kvmpy.memory: guest RAM, its bounds, its hole, its dirty pages."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import ConfigError, GuestMemoryError
from kvmpy.memory import ANONYMOUS, FILE, HOLE_END, HOLE_START, MEMFD, GuestMemory
from kvmpy.units import GIB, MIB, PAGE_SIZE

SIZE = 4 * MIB


@pytest.fixture(params=[ANONYMOUS, MEMFD, FILE])
def memory(request, tmp_path):
    path = str(tmp_path / "ram") if request.param == FILE else None
    with GuestMemory(SIZE, backing=request.param, path=path) as opened:
        yield opened


def test_what_is_written_is_read(memory):
    memory.write(0x1234, b"hello")
    assert memory.read(0x1233, 7) == b"\0hello\0"


def test_a_view_is_read_only_and_shows_later_writes(memory):
    view = memory.view(0x2000, 4)
    memory.write(0x2001, b"x")
    assert bytes(view) == b"\0x\0\0"
    assert view.readonly


def test_fill_covers_exactly_its_range(memory):
    memory.fill(0x1001, 3 * MIB, 0xAA)
    assert memory.read(0x1000, 2) == b"\0\xaa"
    assert memory.read(0x1001 + 3 * MIB - 1, 2) == b"\xaa\0"


@pytest.mark.parametrize(
    ("address", "length"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (0, SIZE + 1), (1 << 64, 1), (0, -1)]
)
def test_an_access_that_is_not_all_ram_is_refused(memory, address, length):
    for access in (memory.read, memory.view, memory.writable, memory.fill):
        with pytest.raises(GuestMemoryError):
            access(address, length)


@given(st.integers(-(1 << 65), 1 << 65), st.integers(-(1 << 65), 1 << 65))
def test_no_address_escapes(address, length):
    with GuestMemory(64 * PAGE_SIZE) as memory:
        inside = address >= 0 and length >= 0 and address + length <= memory.size
        try:
            assert len(memory.view(address, length)) == length
            assert inside
        except GuestMemoryError:
            assert not inside


def test_each_page_that_is_written_is_dirty_and_no_other(memory):
    memory.read(0x8000, 100)
    memory.write(0x3FFF, b"ab")
    memory.writable(0x10000, 1)
    memory.fill(0x20000, 0)
    assert list(memory.dirty_pages()) == [0x3000, 0x4000, 0x10000]
    memory.clear_dirty()
    assert list(memory.dirty_pages()) == []


def test_ram_goes_around_the_hole_below_4_gib():
    with GuestMemory(5 * GIB) as memory:
        assert [(region.start, region.end) for region in memory.regions] == [(0, HOLE_START), (HOLE_END, 6 * GIB)]
        assert memory.end == 6 * GIB
        memory.write(HOLE_END, b"above")
        assert memory.read(HOLE_END, 5) == b"above"
        with pytest.raises(GuestMemoryError):
            memory.write(HOLE_START - 1, b"ab")


def test_a_memfd_shows_what_the_guest_memory_holds():
    with GuestMemory(SIZE, backing=MEMFD) as memory:
        memory.write(0x5000, b"shared")
        assert os.pread(memory.regions[0].fd, 6, 0x5000) == b"shared"


def test_closing_twice_is_fine_and_a_view_outlives_it():
    memory = GuestMemory(SIZE)
    view = memory.view(0, 4)
    memory.close()
    memory.close()
    assert bytes(view) == b"\0\0\0\0"


@pytest.mark.parametrize("size", [0, -4096, 4097])
def test_a_size_that_is_no_whole_number_of_pages_is_refused(size):
    with pytest.raises(ConfigError):
        GuestMemory(size)


def test_no_fd_is_left_behind():
    before = set(os.listdir("/proc/self/fd"))
    GuestMemory(SIZE, backing=MEMFD).close()
    with pytest.raises(ConfigError):
        GuestMemory(SIZE, backing=FILE)
    assert set(os.listdir("/proc/self/fd")) == before
