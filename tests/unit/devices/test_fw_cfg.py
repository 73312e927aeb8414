"""kvmpy.devices.fw_cfg: selecting, reading, the directory, DMA, and what hostile guests send."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.fw_cfg import (
    DATA,
    DMA_ADDRESS_HIGH,
    DMA_ADDRESS_LOW,
    FW_CFG_DMA_CTL_ERROR,
    FW_CFG_DMA_CTL_READ,
    FW_CFG_DMA_CTL_SELECT,
    FW_CFG_DMA_CTL_SKIP,
    FW_CFG_DMA_CTL_WRITE,
    FW_CFG_FILE_DIR,
    FW_CFG_FILE_FIRST,
    FW_CFG_ID,
    FW_CFG_NB_CPUS,
    FW_CFG_SIGNATURE,
    SELECTOR,
    FwCfg,
    FwCfgState,
)
from kvmpy.errors import ConfigError, ImageError
from kvmpy.memory import GuestMemory
from kvmpy.testing.fakes import Ports
from kvmpy.units import MIB

REQUEST = 0x1000
BUFFER = 0x2000


@pytest.fixture
def memory():
    with GuestMemory(MIB) as memory:
        yield memory


@pytest.fixture
def device(memory):
    return FwCfg(memory)


@pytest.fixture
def ports(device):
    return Ports(device)


def select(ports, key):
    ports.write(SELECTOR, key.to_bytes(2, "little"))


def read_item(ports, key, length):
    select(ports, key)
    return bytes(ports.inb(DATA) for _ in range(length))


def dma(ports, memory, control, length=0, buffer=BUFFER, request=REQUEST):
    """Carries out a request; the control word that it leaves."""
    memory.write(request, struct.pack(">IIQ", control, length, buffer))
    ports.write(DMA_ADDRESS_HIGH, (request >> 32).to_bytes(4, "big"))
    ports.write(DMA_ADDRESS_LOW, (request & 0xFFFFFFFF).to_bytes(4, "big"))
    return int.from_bytes(memory.read(request, 4), "big")


def keyed(key, bits):
    return key << 16 | FW_CFG_DMA_CTL_SELECT | bits


def directory(ports):
    """The files as (name, key, size), in the directory's order."""
    count = int.from_bytes(read_item(ports, FW_CFG_FILE_DIR, 4), "big")
    files = []
    for _ in range(count):
        size, key, _, name = struct.unpack(">IHH56s", bytes(ports.inb(DATA) for _ in range(64)))
        files.append((name.rstrip(b"\0").decode(), key, size))
    return files


def test_the_signature_says_qemu(ports):
    assert read_item(ports, FW_CFG_SIGNATURE, 4) == b"QEMU"


def test_the_features_are_the_ports_and_dma(ports):
    assert read_item(ports, FW_CFG_ID, 4) == b"\x03\0\0\0"


def test_the_dma_register_reads_as_its_signature(ports):
    assert ports.read(DMA_ADDRESS_HIGH, 4) + ports.read(DMA_ADDRESS_LOW, 4) == b"QEMU CFG"


def test_a_number_is_little_endian(device, ports):
    device.add_int(FW_CFG_NB_CPUS, 0x102, 2)
    assert read_item(ports, FW_CFG_NB_CPUS, 2) == b"\x02\x01"


def test_past_its_end_an_item_reads_as_zeros(device, ports):
    device.add(FW_CFG_NB_CPUS, b"\x01")
    assert read_item(ports, FW_CFG_NB_CPUS, 3) == b"\x01\0\0"


def test_an_item_that_is_not_there_reads_as_zeros(ports):
    assert read_item(ports, 0x1234, 3) == bytes(3)


def test_nothing_selected_reads_as_zero(ports):
    assert ports.inb(DATA) == 0


def test_selecting_again_starts_again(ports):
    assert read_item(ports, FW_CFG_SIGNATURE, 2) == read_item(ports, FW_CFG_SIGNATURE, 2)


def test_files_are_listed_by_name(device, ports):
    device.add_file("etc/e820", b"123")
    device.add_file("bootorder", b"1")
    device.add_file("etc/acpi/rsdp", b"12")
    names = [(name, size) for name, _, size in directory(ports)]
    assert names == [("bootorder", 1), ("etc/acpi/rsdp", 2), ("etc/e820", 3)]


def test_keys_follow_the_directory(device, ports):
    for name in ("c", "a", "b"):
        device.add_file(name, name.encode())
    files = directory(ports)
    assert [key for _, key, _ in files] == [FW_CFG_FILE_FIRST + n for n in range(3)]
    assert [read_item(ports, key, 1) for _, key, _ in files] == [b"a", b"b", b"c"]


def test_a_file_can_be_replaced(device, ports):
    device.add_file("a", b"old")
    device.add_file("a", b"newer")
    assert directory(ports) == [("a", FW_CFG_FILE_FIRST, 5)]
    assert device.files() == {"a": b"newer"}


@pytest.mark.parametrize("name", ["", "x" * 56, "etc/ä", "a\0b"])
def test_a_name_that_the_directory_cannot_hold_is_refused(device, name):
    with pytest.raises(ConfigError):
        device.add_file(name, b"")


def test_a_kernel_is_eight_items(device, ports):
    device.add_linux(b"setup", b"kernel", initrd=b"initrd", cmdline=b"quiet\0")
    assert read_item(ports, 0x17, 4) == b"\x05\0\0\0"
    assert read_item(ports, 0x18, 5) == b"setup"
    assert read_item(ports, 0x11, 6) == b"kernel"
    assert read_item(ports, 0x0B, 4) == b"\x06\0\0\0"
    assert read_item(ports, 0x15, 6) == b"quiet\0"


def test_dma_reads_an_item(ports, memory):
    assert dma(ports, memory, keyed(FW_CFG_SIGNATURE, FW_CFG_DMA_CTL_READ), 4) == 0
    assert memory.read(BUFFER, 4) == b"QEMU"


def test_dma_goes_on_where_it_stopped(ports, memory):
    dma(ports, memory, keyed(FW_CFG_SIGNATURE, FW_CFG_DMA_CTL_READ), 2)
    assert dma(ports, memory, FW_CFG_DMA_CTL_READ, 2) == 0
    assert memory.read(BUFFER, 2) == b"MU"


def test_dma_skips(ports, memory):
    dma(ports, memory, keyed(FW_CFG_SIGNATURE, FW_CFG_DMA_CTL_SKIP), 3)
    assert ports.inb(DATA) == ord("U")


def test_skipping_past_the_end_stays_there(ports, memory):
    assert dma(ports, memory, keyed(FW_CFG_SIGNATURE, FW_CFG_DMA_CTL_SKIP), 0xFFFFFFFF) == 0
    assert ports.inb(DATA) == 0


def test_dma_selects_and_does_nothing_else(ports, memory):
    assert dma(ports, memory, keyed(FW_CFG_SIGNATURE, 0), 4) == 0
    assert ports.inb(DATA) == ord("Q")


def test_dma_reads_zeros_past_the_end(ports, memory):
    memory.fill(BUFFER, 8, 0xAA)
    assert dma(ports, memory, keyed(FW_CFG_SIGNATURE, FW_CFG_DMA_CTL_READ), 7) == 0
    assert memory.read(BUFFER, 8) == b"QEMU\0\0\0\xaa"


def test_a_buffer_that_is_not_ram_is_an_error_and_takes_nothing(ports, memory):
    result = dma(ports, memory, keyed(FW_CFG_SIGNATURE, FW_CFG_DMA_CTL_READ), 4, buffer=MIB - 2)
    assert result == FW_CFG_DMA_CTL_ERROR
    assert memory.read(MIB - 2, 2) == b"\0\0"
    assert ports.inb(DATA) == ord("Q")


def test_a_length_beyond_ram_is_an_error(ports, memory):
    result = dma(ports, memory, keyed(FW_CFG_SIGNATURE, FW_CFG_DMA_CTL_READ), 0xFFFFFFFF)
    assert result == FW_CFG_DMA_CTL_ERROR


@pytest.mark.parametrize("request_at", [MIB - 8, MIB, 0xFFFFFFFFFFFFFFFF])
def test_a_request_that_is_not_in_ram_is_ignored(ports, memory, request_at):
    ports.write(DMA_ADDRESS_HIGH, (request_at >> 32).to_bytes(4, "big"))
    ports.write(DMA_ADDRESS_LOW, (request_at & 0xFFFFFFFF).to_bytes(4, "big"))
    # All that can be answered is the control word, where that is in RAM.
    assert memory.read(0, MIB - 8) == bytes(MIB - 8)


def test_the_high_half_counts_once(ports, memory):
    memory.write(REQUEST, struct.pack(">IIQ", keyed(FW_CFG_SIGNATURE, FW_CFG_DMA_CTL_READ), 4, BUFFER))
    ports.write(DMA_ADDRESS_HIGH, b"\0\0\0\1")
    ports.write(DMA_ADDRESS_LOW, REQUEST.to_bytes(4, "big"))
    assert memory.read(BUFFER, 4) == bytes(4)
    ports.write(DMA_ADDRESS_LOW, REQUEST.to_bytes(4, "big"))
    assert memory.read(BUFFER, 4) == b"QEMU"


def test_a_writable_file_takes_what_is_written(device, ports, memory):
    heard = []
    device.add_file("etc/vmgenid_addr", bytes(8), on_written=heard.append)
    memory.write(BUFFER, b"\1\2\3\4")
    assert dma(ports, memory, keyed(FW_CFG_FILE_FIRST, FW_CFG_DMA_CTL_WRITE), 4) == 0
    assert dma(ports, memory, FW_CFG_DMA_CTL_WRITE, 4) == 0
    assert heard == [b"\1\2\3\4\0\0\0\0", b"\1\2\3\4\1\2\3\4"]


def test_a_write_that_does_not_fit_is_an_error(device, ports, memory):
    heard = []
    device.add_file("etc/vmgenid_addr", bytes(8), on_written=heard.append)
    result = dma(ports, memory, keyed(FW_CFG_FILE_FIRST, FW_CFG_DMA_CTL_WRITE), 9)
    assert result == FW_CFG_DMA_CTL_ERROR
    assert heard == []


@pytest.mark.parametrize("key", [FW_CFG_SIGNATURE, FW_CFG_FILE_FIRST, 0x1234])
def test_what_is_not_writable_cannot_be_written(device, ports, memory, key):
    device.add_file("etc/e820", b"abcd")
    assert dma(ports, memory, keyed(key, FW_CFG_DMA_CTL_WRITE), 4) == FW_CFG_DMA_CTL_ERROR
    assert device.files() == {"etc/e820": b"abcd"}


def test_the_listener_may_come_back_to_the_device(device, ports, memory):
    device.add_file("x", bytes(1), on_written=lambda content: device.save())
    assert dma(ports, memory, keyed(FW_CFG_FILE_FIRST, FW_CFG_DMA_CTL_WRITE), 1) == 0


@pytest.mark.parametrize(("offset", "data"), [(0, b"\0"), (0, b"\0\0\0\0"), (1, b"\0"), (2, b"\0\0"), (11, b"\0")])
def test_other_writes_do_nothing(device, ports, offset, data):
    select(ports, FW_CFG_SIGNATURE)
    before = device.save()
    ports.write(offset, data)
    assert device.save() == before


def test_the_selector_and_the_holes_read_as_ones(ports):
    assert ports.read(SELECTOR, 2) == b"\xff\xff"
    assert ports.read(2, 2) == b"\xff\xff"


def test_a_restored_device_goes_on(device, ports, memory):
    read_item(ports, FW_CFG_SIGNATURE, 2)
    other = FwCfg(memory)
    other.restore(FwCfgState.from_dict(device.save().to_dict()))
    assert Ports(other).inb(DATA) == ord("M")


def test_written_files_are_saved(device, ports, memory):
    device.add_file("x", bytes(2), on_written=len)
    memory.write(BUFFER, b"hi")
    dma(ports, memory, keyed(FW_CFG_FILE_FIRST, FW_CFG_DMA_CTL_WRITE), 2)
    other = FwCfg(memory)
    other.add_file("x", bytes(2), on_written=len)
    other.restore(FwCfgState.from_dict(device.save().to_dict()))
    assert other.files() == {"x": b"hi"}
    assert read_item(Ports(other), FW_CFG_FILE_FIRST, 2) == b"hi"


@pytest.mark.parametrize("files", [{}, {"x": "00"}, {"x": "0000", "y": ""}])
def test_a_state_with_other_files_is_refused(device, files):
    device.add_file("x", bytes(2), on_written=len)
    with pytest.raises(ImageError):
        device.restore(FwCfgState(key=0, offset=0, address_high=0, files=files))


@pytest.mark.parametrize("files", [{"x": "0"}, {"x": "zz"}, {"x": 1}, []])
def test_nonsense_for_files_is_refused(files):
    with pytest.raises(ImageError):
        FwCfgState.from_dict({"key": 0, "offset": 0, "address_high": 0, "files": files})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, 2 * MIB)), max_size=5))
def test_no_request_raises_or_stays_unanswered(requests):
    with GuestMemory(MIB) as memory:
        device = FwCfg(memory)
        device.add_file("x", bytes(16), on_written=len)
        for control, length, buffer in requests:
            assert dma(Ports(device), memory, control, length, buffer) in (0, FW_CFG_DMA_CTL_ERROR) or (
                buffer < REQUEST + 16 and buffer + length > REQUEST  # It asked for its own request to be overwritten.
            )
