from __future__ import annotations

import gzip
import struct
import sys

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.boot.entry import LONG, PROTECTED, Entry
from kvmpy.boot.linux import load_linux
from kvmpy.errors import ConfigError, ImageError, KvmpyError
from kvmpy.memory import GuestMemory
from kvmpy.testing.images import KERNEL_BASE, ElfSegment, bzimage, elf_image
from kvmpy.units import GIB, MIB
from kvmpy.x86 import layout
from kvmpy.x86.gdt import BOOT_CS, BOOT_DS
from kvmpy.x86.paging import CR0_PG, CR4_PAE, EFER_LMA, EFER_NXE, walk

CODE = ElfSegment(16 * MIB, b"kernel code", memsz=0x3000)
DATA = ElfSegment(17 * MIB, b"kernel data", memsz=0x4000)
VMLINUX = elf_image([CODE, DATA])
VMLINUX_32 = elf_image([CODE, DATA], bits=32)
BZIMAGE = bzimage(gzip.compress(VMLINUX), init_size=2 * MIB)


@pytest.fixture
def memory():
    with GuestMemory(64 * MIB) as memory:
        yield memory


def load(memory: GuestMemory, kernel: bytes, *, initrd: bytes | None = None, **arguments) -> Entry:
    disk = None if initrd is None else memoryview(initrd)
    return load_linux(memory, memoryview(kernel), initrd=disk, **arguments)


def zero_page_field(memory: GuestMemory, form: str, offset: int) -> int:
    return struct.unpack("<" + form, memory.read(layout.ZERO_PAGE + offset, struct.calcsize(form)))[0]


def placed_initrd(memory: GuestMemory) -> tuple[int, int]:
    return zero_page_field(memory, "I", 0x218), zero_page_field(memory, "I", 0x21C)


@pytest.mark.parametrize("kernel", [VMLINUX, VMLINUX_32, BZIMAGE, bzimage(VMLINUX)])
def test_segments_are_where_they_want_to_be(memory, kernel):
    entry = load(memory, kernel)
    assert entry.rip == 16 * MIB
    assert memory.read(16 * MIB, 11) == b"kernel code"
    assert memory.read(17 * MIB, 11) == b"kernel data"


@pytest.mark.parametrize(("kernel", "mode"), [(VMLINUX, LONG), (VMLINUX_32, PROTECTED)])
def test_mode_is_that_of_the_kernel(memory, kernel, mode):
    assert load(memory, kernel).mode == mode


def test_virtual_entry_point(memory):
    assert load(memory, elf_image([CODE], entry=KERNEL_BASE + 16 * MIB + 3)).rip == 16 * MIB + 3


def test_rsi_points_to_the_zero_page(memory):
    entry = load(memory, VMLINUX)
    assert entry.registers == {"rsi": layout.ZERO_PAGE}
    assert memory.read(entry.registers["rsi"] + 0x202, 4) == b"HdrS"


@pytest.mark.parametrize(("kernel", "long_mode"), [(VMLINUX, True), (VMLINUX_32, False)])
def test_gdt_has_flat_code_and_data(memory, kernel, long_mode):
    entry = load(memory, kernel)
    assert entry.gdt_limit % 8 == 7
    for selector, kind in ((BOOT_CS, 0x9B), (BOOT_DS, 0x93)):
        assert selector < entry.gdt_limit
        descriptor = memory.read(entry.gdt_base + selector, 8)
        assert descriptor[0:5] == b"\xff\xff\0\0\0"
        assert (descriptor[5], descriptor[6] & 0x8F, descriptor[7]) == (kind, 0x8F, 0)
    flags = memory.read(entry.gdt_base + BOOT_CS + 6, 1)[0]
    assert (bool(flags & 0x20), bool(flags & 0x40)) == (long_mode, not long_mode)


def test_64bit_entry_is_mapped_onto_itself(memory):
    entry = load(memory, VMLINUX)
    for address in (entry.rip, layout.ZERO_PAGE, layout.COMMAND_LINE, entry.rsp - 8, 64 * MIB - 1):
        found = walk(memory, CR0_PG, entry.cr3, CR4_PAE, EFER_LMA | EFER_NXE, address)
        assert found is not None
        assert found.physical == address


def test_32bit_entry_has_no_paging(memory):
    assert load(memory, VMLINUX_32).cr3 == 0


def test_command_line(memory):
    load(memory, VMLINUX, cmdline="console=ttyS0 quiet")
    address = zero_page_field(memory, "I", 0x228)
    assert memory.read(address, 20) == b"console=ttyS0 quiet\0"


@pytest.mark.parametrize("kernel", [VMLINUX, bzimage(VMLINUX)])
def test_longest_command_line(memory, kernel):
    load(memory, kernel, cmdline="x" * 2047)
    with pytest.raises(ConfigError, match="append: the kernel command line has 2048 bytes; this kernel takes 2047"):
        load(memory, kernel, cmdline="x" * 2048)


def test_command_line_limit_is_in_bytes(memory):
    with pytest.raises(ConfigError, match="append"):
        load(memory, VMLINUX, cmdline="é" * 1024)


def test_a_kernel_that_would_take_any_command_line(memory):
    kernel = bzimage(VMLINUX, cmdline_size=0xFFFFFFFF)
    load(memory, kernel, cmdline="x" * 65535)
    with pytest.raises(ConfigError, match="append"):
        load(memory, kernel, cmdline="x" * 65536)


@pytest.mark.parametrize("cmdline", ["quiet\0init=/bin/sh", "\ud800"])
def test_command_line_that_is_no_text(memory, cmdline):
    with pytest.raises(ConfigError, match="append"):
        load(memory, VMLINUX, cmdline=cmdline)


def test_initrd_is_at_the_end_of_ram_on_a_page(memory):
    load(memory, VMLINUX, initrd=b"initrd" * 1000)
    address, size = placed_initrd(memory)
    assert size == 6000
    assert address == 64 * MIB - 0x2000
    assert memory.read(address, size) == b"initrd" * 1000


def test_initrd_stays_under_initrd_addr_max(memory):
    load(memory, bzimage(VMLINUX, initrd_addr_max=40 * MIB - 1), initrd=b"x" * 4096)
    assert placed_initrd(memory) == (40 * MIB - 4096, 4096)


def test_initrd_stays_below_the_hole():
    with GuestMemory(5 * GIB) as memory:
        load(memory, bzimage(VMLINUX, initrd_addr_max=0xFFFFFFFF), initrd=b"x" * 4096)
        assert placed_initrd(memory) == (3 * GIB - 4096, 4096)


@pytest.mark.parametrize("initrd", [None, b""])
def test_no_initrd(memory, initrd):
    load(memory, VMLINUX, initrd=initrd)
    assert placed_initrd(memory) == (0, 0)


def test_initrd_that_needs_a_larger_machine(memory):
    with pytest.raises(ConfigError, match=r"initrd: .* do not fit .*; give the machine more memory"):
        load(memory, VMLINUX, initrd=bytes(48 * MIB))


@pytest.mark.parametrize("addr_max", [0, 16 * MIB, 18 * MIB])
def test_initrd_does_not_go_over_the_kernel(memory, addr_max):
    # The kernel says that it needs the memory up to 18 MiB while it starts.
    kernel = bzimage(VMLINUX, initrd_addr_max=addr_max, init_size=2 * MIB)
    with pytest.raises(ConfigError, match=r"initrd: 4096 bytes do not fit .*; this kernel takes none"):
        load(memory, kernel, initrd=b"x" * 4096)


def test_kernel_that_does_not_fit():
    with GuestMemory(17 * MIB) as memory, pytest.raises(ConfigError, match="memory: the kernel needs at least 18M"):
        load(memory, VMLINUX)


@pytest.mark.parametrize("memsz", [1 << 40, (1 << 52) - 16 * MIB])
def test_kernel_that_is_larger_than_any_machine(memory, memsz):
    with pytest.raises(ConfigError, match="memory: the kernel needs at least"):
        load(memory, elf_image([ElfSegment(16 * MIB, b"x", memsz=memsz)]))


def test_kernel_below_1_mib(memory):
    with pytest.raises(ImageError, match="below 1 MiB"):
        load(memory, elf_image([ElfSegment(layout.ZERO_PAGE, b"x")]))


def test_seed_comes_from_the_source_that_is_given(memory):
    load(memory, VMLINUX, rng=lambda size: b"\x5a" * size)
    address = zero_page_field(memory, "Q", 0x250)
    assert memory.read(address + 16, 32) == b"\x5a" * 32


def test_mp_tables_name_the_cpus(memory):
    load(memory, VMLINUX, vcpus=3)
    table = memory.read(layout.MP_TABLE, 44 + 3 * 20)
    assert [table[44 + 20 * index] for index in range(3)] == [0, 0, 0]


def test_zero_page_has_the_bzimages_own_header(memory):
    load(memory, bzimage(gzip.compress(VMLINUX), version=0x020D))
    assert zero_page_field(memory, "H", 0x206) == 0x020D


def test_description_says_what_was_done(memory):
    assert load(memory, BZIMAGE).description == "bzImage, gzip payload unpacked, 64-bit entry"
    assert load(memory, VMLINUX).description == "vmlinux, 64-bit entry"


def test_missing_library_leaves_the_unpacking_to_the_guest(memory, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    entry = load(memory, bzimage(zstandard.compress(VMLINUX)))
    assert (entry.mode, entry.rip) == (LONG, MIB + 0x200)
    assert memory.read(MIB, 0x400) == b"\xf4" * 0x400
    (note,) = entry.notes
    assert "pip install 'kvmpy[images]'" in note


def test_payload_in_a_format_of_the_future_is_left_to_the_guest(memory):
    assert load(memory, bzimage(b"unheard of")).rip == MIB + 0x200


def test_kernel_before_2_08_is_left_to_unpack_itself(memory):
    entry = load(memory, bzimage(gzip.compress(VMLINUX), version=0x0207))
    assert (entry.mode, entry.rip, entry.cr3) == (PROTECTED, MIB, 0)


def test_kernel_without_a_64bit_entry_unpacks_itself_in_32_bits(memory):
    entry = load(memory, bzimage(b"unheard of", xloadflags=0))
    assert (entry.mode, entry.rip) == (PROTECTED, MIB)


def test_decompressor_needs_room_for_what_it_unpacks():
    with GuestMemory(20 * MIB) as memory, pytest.raises(ConfigError, match="needs at least 48M"):
        load(memory, bzimage(b"unheard of", init_size=32 * MIB))


def test_payload_that_is_a_bomb(memory):
    kernel = bzimage(gzip.compress(bytes(65 * MIB)))
    with pytest.raises(ImageError, match="larger than 64M"):
        load(memory, kernel)


@pytest.mark.parametrize("payload", [gzip.compress(b"no kernel"), gzip.compress(VMLINUX)[:-20]])
def test_payload_that_is_damaged(memory, payload):
    with pytest.raises(ImageError):
        load(memory, bzimage(payload))


@given(
    kernel=st.sampled_from([VMLINUX, VMLINUX_32, BZIMAGE, bzimage(VMLINUX)]),
    changes=st.lists(st.tuples(st.integers(0, 0x300), st.integers(0, 255)), max_size=6),
    initrd=st.none() | st.binary(max_size=100),
)
def test_no_changed_kernel_raises_anything_else(kernel, changes, initrd):
    damaged = bytearray(kernel)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    with GuestMemory(32 * MIB) as memory:
        try:
            entry = load(memory, bytes(damaged), initrd=initrd, rng=bytes)
            assert layout.HIGH_MEMORY <= entry.rip < 32 * MIB
        except KvmpyError:
            pass
