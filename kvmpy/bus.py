"""Address → device: the port and the memory-mapped I/O address spaces of one machine.

A device knows neither its address nor its thread.  A bus maps a range of addresses to it and calls `read` and
`write` with the offset into that range.  What no device claims reads as all ones and swallows writes, as on a PC.

Locks: a device that several threads enter holds a lock of its own, taken inside its methods.  The order is
machine, then device, then the stream or queue behind it; nobody calls upwards with a lock held, except that a
device may set its interrupt line.
"""

from __future__ import annotations

from bisect import bisect_right
from threading import Lock

from kvmpy.errors import ConfigError

# A guest may touch as many addresses as it likes; so many are remembered.
FOUND_LIMIT = 4096

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Device(Protocol):
        """Something that the guest reads and writes at an address."""

        def read(self, offset: int, data: memoryview) -> None:
            """Fills `data` (1, 2, 4 or 8 bytes, or any length for a string access) from `offset` on."""

        def write(self, offset: int, data: memoryview) -> None:
            """Takes what the guest wrote at `offset`."""


class Mapping:
    """A device's place on a bus: `start` to `end` (exclusive), under `name`."""

    __slots__ = ("device", "end", "name", "read", "start", "write")

    def __init__(self, start: int, end: int, device: Device, name: str) -> None:
        self.start = start
        self.end = end
        self.device = device
        self.name = name
        # Bound once: an exit costs one look-up and one call.
        self.read = device.read
        self.write = device.write

    def __repr__(self) -> str:
        return f"{self.name} at {self.start:#x}..{self.end - 1:#x}"


class Bus:
    """An address space of `size` bytes; `name` is what its errors call it."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        # The starts of all mappings and the mappings, by rising address: replaced as one, so that readers need no lock.
        self._layout: tuple[list[int], list[Mapping]] = ([], [])
        # Addresses that were asked for → their mapping.  A change makes a new one: a look-up that is under way in
        # another thread then fills the old one, which nobody reads any more.
        self._found: dict[int, Mapping] = {}
        self._listeners: list[Callable[[], None]] = []
        self._changing = Lock()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after each `add` and `remove`: for who keeps what `find` told."""
        self._listeners.append(listener)

    def add(self, start: int, length: int, device: Device, name: str = "") -> Mapping:
        """Maps `device` at `start`, `length` bytes long; an overlap or a range outside the bus is a `ConfigError`."""
        mapping = Mapping(start, start + length, device, name or type(device).__name__)
        if start < 0 or length <= 0 or mapping.end > self.size:
            raise ConfigError(self.name, f"{mapping} is outside of the address space")
        with self._changing:
            starts, mappings = self._layout
            index = bisect_right(starts, start)
            for other in mappings[max(index - 1, 0) : index + 1]:
                if other.start < mapping.end and start < other.end:
                    raise ConfigError(self.name, f"{mapping} overlaps {other}")
            self._replace([*mappings[:index], mapping, *mappings[index:]])
        return mapping

    def remove(self, mapping: Mapping) -> None:
        """Takes `mapping` off the bus; its addresses are unclaimed again."""
        with self._changing:
            self._replace([other for other in self._layout[1] if other is not mapping])

    def _replace(self, mappings: list[Mapping]) -> None:
        self._layout = ([mapping.start for mapping in mappings], mappings)
        self._found = {}
        for listener in self._listeners:
            listener()

    def find(self, address: int) -> Mapping | None:
        """The mapping that claims `address`, or None."""
        found = self._found
        try:
            return found[address]
        except KeyError:
            pass
        starts, mappings = self._layout
        index = bisect_right(starts, address) - 1
        if index < 0 or address >= mappings[index].end:
            return None
        if len(found) < FOUND_LIMIT:
            found[address] = mappings[index]
        return mappings[index]

    def read(self, address: int, data: memoryview) -> bool:
        """Lets the device at `address` fill `data`; False, and all ones, where there is none."""
        mapping = self.find(address)
        if mapping is None:
            data[:] = b"\xff" * len(data)
            return False
        mapping.read(address - mapping.start, data)
        return True

    def write(self, address: int, data: memoryview) -> bool:
        """Hands `data` to the device at `address`; False where there is none."""
        mapping = self.find(address)
        if mapping is None:
            return False
        mapping.write(address - mapping.start, data)
        return True

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """All mappings, by rising address."""
        return tuple(self._layout[1])


def pio_bus() -> Bus:
    """The 64 Ki ports of `in` and `out`."""
    return Bus("port", 1 << 16)


def mmio_bus() -> Bus:
    """The guest-physical addresses, as far as x86 can have them (52 bits)."""
    return Bus("mmio", 1 << 52)
