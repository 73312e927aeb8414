"""What a machine's firmware is told of it through fw_cfg."""

from __future__ import annotations

from kvmpy.devices.fw_cfg import FW_CFG_BOOT_MENU, FW_CFG_MAX_CPUS, FW_CFG_NB_CPUS, FW_CFG_RAM_SIZE, FwCfg
from kvmpy.x86.firmware import e820_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmpy.memory import GuestMemory

# SeaBIOS says on this port what it does, where the port reads as a debug console does.
SEABIOS_DEBUG_PORT = 0x402


def firmware_config(
    memory: GuestMemory,
    vcpus: int,
    *,
    serial_console: int | None = None,
    boot_menu: bool = True,
    files: Mapping[str, bytes] | None = None,
) -> FwCfg:
    """A fw_cfg with what firmware asks for on every machine, and then `files` by name.

    `serial_console` is the port of the serial port that takes the place of screen and keyboard, for SeaBIOS;
    `boot_menu` offers its menu.
    """
    device = FwCfg(memory)
    device.add_int(FW_CFG_RAM_SIZE, memory.size, 8)
    device.add_int(FW_CFG_NB_CPUS, vcpus, 2)
    device.add_int(FW_CFG_MAX_CPUS, vcpus, 2)
    device.add_int(FW_CFG_BOOT_MENU, boot_menu, 2)
    device.add_file("etc/e820", e820_file(memory.regions))
    if serial_console is not None:
        device.add_file("etc/sercon-port", serial_console.to_bytes(8, "little"))
    for name, content in (files or {}).items():
        device.add_file(name, content)
    return device
