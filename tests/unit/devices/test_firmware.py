"""kvmpy.devices.firmware: what firmware is told of the machine."""

from __future__ import annotations

import pytest

from kvmpy.devices.firmware import firmware_config
from kvmpy.devices.fw_cfg import FW_CFG_BOOT_MENU, FW_CFG_MAX_CPUS, FW_CFG_NB_CPUS, FW_CFG_RAM_SIZE
from kvmpy.memory import GuestMemory
from kvmpy.testing.fakes import Ports
from kvmpy.units import MIB
from kvmpy.x86.firmware import e820_file


@pytest.fixture
def memory():
    with GuestMemory(2 * MIB) as memory:
        yield memory


def number(device, key, size):
    ports = Ports(device)
    ports.write(0, key.to_bytes(2, "little"))
    return int.from_bytes(bytes(ports.inb(1) for _ in range(size)), "little")


def test_memory_and_cpus_are_told(memory):
    device = firmware_config(memory, 3)
    assert number(device, FW_CFG_RAM_SIZE, 8) == 2 * MIB
    assert number(device, FW_CFG_NB_CPUS, 2) == number(device, FW_CFG_MAX_CPUS, 2) == 3


@pytest.mark.parametrize("wanted", [True, False])
def test_the_boot_menu_is_a_matter_of_choice(memory, wanted):
    assert number(firmware_config(memory, 1, boot_menu=wanted), FW_CFG_BOOT_MENU, 2) == wanted


def test_the_memory_map_is_always_there(memory):
    assert firmware_config(memory, 1).files() == {"etc/e820": e820_file(memory.regions)}


def test_a_serial_console_is_named_by_its_port(memory):
    files = firmware_config(memory, 1, serial_console=0x3F8).files()
    assert files["etc/sercon-port"] == b"\xf8\x03\0\0\0\0\0\0"


def test_the_caller_s_files_come_along(memory):
    files = firmware_config(memory, 1, files={"bootorder": b"/rom@x\n\0"}).files()
    assert files["bootorder"] == b"/rom@x\n\0"
