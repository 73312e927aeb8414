"""Global system interrupts: which pin of the I/O APIC is whose."""

from __future__ import annotations

from kvmpy.errors import ConfigError

IOAPIC_PINS = 24

# First the pins that no ISA device has ever had, then those whose devices this machine has not.
FREE_PINS = (*range(16, IOAPIC_PINS), 5, 10, 11, 3, 6, 7, 12, 14, 15)


class GsiAllocator:
    """Hands out pins that are one device's alone.  PIT, keyboard, COM1, clock and SCI have theirs from the start."""

    __slots__ = ("_owners",)

    def __init__(self) -> None:
        self._owners = {0: "PIT", 1: "keyboard", 2: "PIT", 4: "COM1", 8: "RTC", 9: "SCI", 13: "FPU"}

    def claim(self, gsi: int, owner: str) -> int:
        """Gives `gsi` to `owner`; `ConfigError` where it is no pin or somebody else's."""
        if not 0 <= gsi < IOAPIC_PINS:
            raise ConfigError(owner, f"interrupt {gsi} is none of the I/O APIC's {IOAPIC_PINS} pins")
        if self._owners.setdefault(gsi, owner) != owner:
            raise ConfigError(owner, f"interrupt {gsi} is that of {self._owners[gsi]} already")
        return gsi

    def take(self, owner: str) -> int:
        """A pin that was nobody's; `ConfigError` when there is none left."""
        for gsi in FREE_PINS:
            if gsi not in self._owners:
                return self.claim(gsi, owner)
        raise ConfigError(owner, f"no interrupt is left for it; the I/O APIC has {len(FREE_PINS)} for such devices")
