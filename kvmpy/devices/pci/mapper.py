"""Shows BARs on the machine's buses."""

from __future__ import annotations

from threading import Lock

from kvmpy.devices.pci.function import IO
from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.bus import Bus, Mapping
    from kvmpy.devices.pci.function import Bar


class BusMapper:
    """The `BarMapper` of a machine with these two buses.

    A guest may put a BAR where another device is: then that device stays, the BAR is not seen, and `refused` counts it.
    """

    def __init__(self, pio: Bus, mmio: Bus) -> None:
        self.refused = 0
        self._pio = pio
        self._mmio = mmio
        self._lock = Lock()
        self._mapped: dict[Bar, tuple[Bus, Mapping]] = {}

    def map(self, bar: Bar, address: int, size: int) -> None:
        """See `BarMapper`."""
        bus = self._pio if bar.kind == IO else self._mmio
        with self._lock:
            try:
                self._mapped[bar] = (
                    bus,
                    bus.add(address, size, bar.device, f"{type(bar.device).__name__} bar{bar.index}"),
                )
            except ConfigError:
                self.refused += 1

    def unmap(self, bar: Bar) -> None:
        """See `BarMapper`."""
        with self._lock:
            bus, mapping = self._mapped.pop(bar, (None, None))
            if bus is not None and mapping is not None:
                bus.remove(mapping)
