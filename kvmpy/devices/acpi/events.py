"""The register behind the generic event device (ACPI 6.5, 5.6.9), which tells the guest what has happened."""

from __future__ import annotations

from kvmpy.devices.registers import RegisterFile, ignore_write
from kvmpy.devices.state import BYTE, State
from kvmpy.x86.acpi.hardware import EVENT_POWER_BUTTON, EVENT_SLEEP_BUTTON, EVENT_VM_GENERATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from kvmpy.devices.state import Fields
    from kvmpy.irq import InterruptLine


class EventState(State):
    """The events that the guest has not read yet."""

    __slots__ = ("events",)

    FIELDS: ClassVar[Fields] = {"events": BYTE}

    def __init__(self, *, events: int = 0) -> None:
        self.events = events


class GenericEventDevice(RegisterFile):
    """One port: reading it gives the events since the last time, as bits, and forgets them.

    `irq`, edge-triggered, is high while there are any, so whoever comes late is read together with the first.
    """

    __slots__ = ("_events", "_irq")

    def __init__(self, irq: InterruptLine) -> None:
        super().__init__()
        self._irq = irq
        self._events = 0

    def notify(self, events: int) -> None:
        """`events` (`EVENT_*`) have happened; from any thread."""
        with self._lock:
            self._events |= events
            self._irq.set(bool(self._events))

    def press_power_button(self) -> None:
        """The user asks a guest without fixed registers to shut down."""
        self.notify(EVENT_POWER_BUTTON)

    def press_sleep_button(self) -> None:
        """The user asks a guest without fixed registers to sleep."""
        self.notify(EVENT_SLEEP_BUTTON)

    def generation_changed(self) -> None:
        """The VM generation ID is a new one."""
        self.notify(EVENT_VM_GENERATION)

    def save(self) -> EventState:
        """What the guest has not read yet."""
        with self._lock:
            return EventState(events=self._events)

    def restore(self, state: EventState) -> None:
        """Takes over `state`; an interrupt that the guest has not served is raised again."""
        with self._lock:
            self._irq.set(False)
            self._events = state.events
            self._irq.set(bool(state.events))

    def _read(self) -> int:
        events, self._events = self._events, 0
        self._irq.set(False)
        return events

    READERS = (_read,)
    WRITERS = (ignore_write,)
