"""A machine that starts in firmware, as a PC does: the image at its place, and what it reads of the machine."""

from __future__ import annotations

from functools import partial

from kvmpy.boot.bzimage import BzImage, is_bzimage
from kvmpy.boot.entry import RESET, Entry
from kvmpy.boot.place import encode_cmdline
from kvmpy.boot.source import open_image
from kvmpy.devices.firmware import SEABIOS_DEBUG_PORT, firmware_config
from kvmpy.devices.fw_cfg import FW_CFG_PORT, FW_CFG_PORTS
from kvmpy.devices.legacy.debug import DebugConsole
from kvmpy.errors import ConfigError
from kvmpy.x86.firmware import load_firmware
from kvmpy.x86.table_loader import acpi_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.boot import Kernel
    from kvmpy.devices.fw_cfg import FwCfg
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.pc import Pc

_SECTOR = 512

# What firmware says of its work is worth keeping, up to a bound: the guest may write there as long as it likes.
_LOG_LIMIT = 64 << 10


def map_firmware(machine: Machine) -> None:
    """Puts the firmware that the machine's configuration names at its place, below 4 GiB and 1 MiB."""
    config, memory = machine.config, machine.memory
    assert config.firmware is not None
    load_firmware(machine.vm, memory, open_image(config.firmware, "firmware"), len(memory.regions))


def inform_firmware(machine: Machine, pc: Pc, kernel: Kernel | None, serial_port: int) -> Entry:
    """Adds what the firmware asks for: the machine's parts, ACPI's tables, and the kernel, where there is one.

    Firmware that wants a screen and a keyboard gets the serial port at `serial_port` for both.
    """
    config = machine.config
    told = firmware_config(machine.memory, config.vcpus, serial_console=serial_port, files=acpi_files(pc.platform))
    if kernel is not None:
        _add_kernel(told, machine, kernel.image)
    machine.pio.add(FW_CFG_PORT, FW_CFG_PORTS, told, "fw-cfg")
    machine.firmware_log = bytearray()
    machine.pio.add(SEABIOS_DEBUG_PORT, 1, DebugConsole(partial(_keep, machine.firmware_log)), "firmware-log")
    name = config.firmware if isinstance(config.firmware, str) else "bytes"
    return Entry(RESET, 0xFFFFFFF0, description=f"firmware {name}")


def _keep(log: bytearray, data: bytes) -> None:
    if len(log) < _LOG_LIMIT:
        log += data


def _add_kernel(told: FwCfg, machine: Machine, image: memoryview) -> None:
    config = machine.config
    if not is_bzimage(image):
        raise ConfigError("kernel", "firmware starts a bzImage, and no other kind of kernel")
    header = BzImage(image)
    size = (header.setup_sects + 1) * _SECTOR
    line = encode_cmdline(machine.command_line, header.cmdline_size)
    initrd = b"" if config.initrd is None else bytes(open_image(config.initrd, "initrd"))
    told.add_linux(bytes(image[:size]), bytes(image[size:]), initrd=initrd, cmdline=line)
