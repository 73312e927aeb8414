"""The root bus, bus 0, and the two ways into its configuration space: ports 0xcf8 and 0xcfc (PCI Local Bus 3.0,
3.2.2.3.2) and memory (the enhanced access mechanism, ECAM; PCI Express 5.0, 7.2.2).

Where no function is, reads give all ones and writes go nowhere.
"""

from __future__ import annotations

from threading import Lock

from kvmpy.devices.pci.config import EXTENDED_SIZE, HEADER_MULTIFUNCTION, HEADER_TYPE
from kvmpy.devices.state import BYTE, State, integer
from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from kvmpy.devices.pci.function import PciFunction
    from kvmpy.devices.state import Fields

SLOTS = 32
FUNCTIONS = 8

PCI_CONFIG_PORT = 0xCF8
PCI_CONFIG_PORTS = 8

# Offsets of the ports.
CONFIG_ADDRESS = 0
RESET_CONTROL = 1
CONFIG_DATA = 4

_ENABLE = 1 << 31
_ADDRESS_KEPT = _ENABLE | 0x00FFFFFC

# The reset control register of Intel's chipsets: a reset happens as RST_CPU rises.
RST_CPU = 0x04
_RESET_KEPT = 0x0E


class PciBus:
    """Bus 0 with its functions by slot and function number."""

    def __init__(self) -> None:
        self._functions: dict[int, PciFunction] = {}

    def add(self, slot: int, device: PciFunction, *, function: int = 0) -> None:
        """Puts `device` into a slot, before the guest runs; `ConfigError` where there is no room."""
        if not (0 <= slot < SLOTS and 0 <= function < FUNCTIONS):
            raise ConfigError("pci", f"there is no slot {slot} with a function {function}")
        if self._functions.setdefault(slot << 3 | function, device) is not device:
            raise ConfigError("pci", f"slot {slot}, function {function} is taken")
        first = self._functions.get(slot << 3)
        # Function 0 says whether it is worth looking for others.
        if first is not None and any(slot << 3 | other in self._functions for other in range(1, FUNCTIONS)):
            first.config.define(HEADER_TYPE, 1, HEADER_MULTIFUNCTION)

    def free_slot(self) -> int:
        """The lowest empty slot; `ConfigError` when all are full."""
        used = {number >> 3 for number in self._functions}
        for slot in range(SLOTS):
            if slot not in used:
                return slot
        raise ConfigError("pci", f"all {SLOTS} slots are taken")

    def functions(self) -> dict[tuple[int, int], PciFunction]:
        """All functions by (slot, function)."""
        return {(number >> 3, number & 7): function for number, function in sorted(self._functions.items())}

    def read(self, bus: int, number: int, offset: int, data: memoryview) -> None:
        """Fills `data` from the configuration space of function `number` (slot << 3 | function) on `bus`."""
        function = self._functions.get(number) if bus == 0 else None
        if function is None:
            data[:] = b"\xff" * len(data)
        else:
            function.read_config(offset, data)

    def write(self, bus: int, number: int, offset: int, data: memoryview) -> None:
        """Writes to the configuration space of function `number` on `bus`."""
        function = self._functions.get(number) if bus == 0 else None
        if function is not None:
            function.write_config(offset, data)


class ConfigPortsState(State):
    """The address register, and the reset control register."""

    __slots__ = ("address", "reset")

    FIELDS: ClassVar[Fields] = {"address": integer(0, (1 << 32) - 1), "reset": BYTE}

    def __init__(self, *, address: int, reset: int) -> None:
        self.address = address
        self.reset = reset


class ConfigPorts:
    """Mechanism #1, eight ports: a double word to CONFIG_ADDRESS names a register, and CONFIG_DATA is it.

    CONFIG_ADDRESS answers double words only; the byte port in its midst, 0xcf9, is the chipset's reset control, and
    calls `on_reset`.  The register is the machine's, as on a PC: two CPUs that use it at once must lock each other out.
    """

    def __init__(self, bus: PciBus, on_reset: Callable[[], object] | None = None) -> None:
        self._bus = bus
        self._on_reset = on_reset
        self._lock = Lock()
        self._address = 0
        self._reset = 0

    def read(self, offset: int, data: memoryview) -> None:
        """Reads one of the ports."""
        address, end = self._address, offset + len(data)
        if offset == CONFIG_ADDRESS and end == CONFIG_DATA:
            data[:] = address.to_bytes(4, "little")
        elif offset == RESET_CONTROL and len(data) == 1:
            data[0] = self._reset
        elif offset >= CONFIG_DATA and end <= PCI_CONFIG_PORTS and address & _ENABLE:
            register = address & 0xFC | offset - CONFIG_DATA
            self._bus.read(address >> 16 & 0xFF, address >> 8 & 0xFF, register, data)
        else:
            data[:] = b"\xff" * len(data)

    def write(self, offset: int, data: memoryview) -> None:
        """Writes one of the ports."""
        address, end = self._address, offset + len(data)
        if offset == CONFIG_ADDRESS and end == CONFIG_DATA:
            self._address = int.from_bytes(data, "little") & _ADDRESS_KEPT
        elif offset == RESET_CONTROL and len(data) == 1:
            with self._lock:
                rises = data[0] & RST_CPU and not self._reset & RST_CPU
                self._reset = data[0] & _RESET_KEPT
            if rises and self._on_reset is not None:
                self._on_reset()
        elif offset >= CONFIG_DATA and end <= PCI_CONFIG_PORTS and address & _ENABLE:
            register = address & 0xFC | offset - CONFIG_DATA
            self._bus.write(address >> 16 & 0xFF, address >> 8 & 0xFF, register, data)

    def save(self) -> ConfigPortsState:
        """The two registers."""
        return ConfigPortsState(address=self._address, reset=self._reset)

    def restore(self, state: ConfigPortsState) -> None:
        """Takes over `state`."""
        self._address = state.address & _ADDRESS_KEPT
        self._reset = state.reset & _RESET_KEPT


class Ecam:
    """Configuration space as memory, 1 MiB for each bus from 0 on; it keeps nothing.

    Other than the ports it reaches the extended registers, from 0x100 on.
    """

    __slots__ = ("_bus",)

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, offset: int, data: memoryview) -> None:
        """Reads registers; `offset` is bus << 20 | slot << 15 | function << 12 | register."""
        self._bus.read(offset >> 20, offset >> 12 & 0xFF, offset & EXTENDED_SIZE - 1, data)

    def write(self, offset: int, data: memoryview) -> None:
        """Writes registers."""
        self._bus.write(offset >> 20, offset >> 12 & 0xFF, offset & EXTENDED_SIZE - 1, data)
