"""The PC's single-register ports: system control A (0x92) and B (0x61), and POST codes (0x80)."""

from __future__ import annotations

from kvmpy.devices.registers import RegisterFile
from kvmpy.devices.state import BYTE, State, integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from kvmpy.devices.state import Fields

# Port 0x61.
TIMER2_GATE = 0x01
SPEAKER = 0x02
PARITY_DISABLE = 0x04
IO_CHECK_DISABLE = 0x08
REFRESH_TOGGLE = 0x10
TIMER2_OUTPUT = 0x20

_CONTROL_B_KEPT = TIMER2_GATE | SPEAKER | PARITY_DISABLE | IO_CHECK_DISABLE

# The memory refresh request came every 15 us; each flips the bit.
REFRESH_SECONDS = 15.085e-6

# Port 0x92.
FAST_RESET = 0x01
FAST_A20 = 0x02


class PortState(State):
    """The `value` that one of these ports keeps, and for POST codes their `count`."""

    __slots__ = ("count", "value")

    FIELDS: ClassVar[Fields] = {"value": BYTE, "count": integer(0, (1 << 64) - 1)}

    def __init__(self, *, value: int, count: int = 0) -> None:
        self.value = value
        self.count = count


class SystemControlB(RegisterFile):
    """Port 0x61 of a machine without a PIT; KVM's own PIT answers this port itself.

    `clock` (in seconds) drives the refresh toggle.  `timer2_output` gets the state of the gate of the PIT's
    channel 2 and tells that channel's output; without one the output is high: a guest that waits for it then sees
    at once that there is nothing to calibrate against, where a low one would keep it waiting for ever.
    """

    __slots__ = ("_clock", "_timer2_output", "_value")

    def __init__(self, clock: Callable[[], float], timer2_output: Callable[[bool], bool] | None = None) -> None:
        super().__init__()
        self._clock = clock
        self._timer2_output = timer2_output
        self._value = 0

    def save(self) -> PortState:
        """The bits that the guest has set."""
        return PortState(value=self._value)

    def restore(self, state: PortState) -> None:
        """Takes over `state`."""
        self._value = state.value & _CONTROL_B_KEPT

    def _read(self) -> int:
        value = self._value
        if int(self._clock() / REFRESH_SECONDS) & 1:
            value |= REFRESH_TOGGLE
        if self._timer2_output is None or self._timer2_output(bool(value & TIMER2_GATE)):
            value |= TIMER2_OUTPUT
        return value

    def _write(self, value: int) -> None:
        self._value = value & _CONTROL_B_KEPT

    READERS = (_read,)
    WRITERS = (_write,)


class PostCodes(RegisterFile):
    """Port 0x80: `last` is the last code written, `count` how many were; guests also write here to wait a moment."""

    __slots__ = ("count", "last")

    def __init__(self) -> None:
        super().__init__()
        self.last = 0
        self.count = 0

    def save(self) -> PortState:
        """The last code and the count."""
        with self._lock:
            return PortState(value=self.last, count=self.count)

    def restore(self, state: PortState) -> None:
        """Takes over `state`."""
        with self._lock:
            self.last = state.value
            self.count = state.count

    def _read(self) -> int:
        return self.last

    def _write(self, value: int) -> None:
        self.last = value
        self.count += 1

    READERS = (_read,)
    WRITERS = (_write,)


class SystemControlA(RegisterFile):
    """Port 0x92: `reset` is called when the guest raises FAST_RESET; FAST_A20 is kept and, as under KVM, always on."""

    __slots__ = ("_reset", "_value")

    def __init__(self, reset: Callable[[], object]) -> None:
        super().__init__()
        self._reset = reset
        self._value = FAST_A20

    def save(self) -> PortState:
        """The register."""
        return PortState(value=self._value)

    def restore(self, state: PortState) -> None:
        """Takes over `state`; nothing is reset by it."""
        self._value = state.value

    def _read(self) -> int:
        return self._value

    def _write(self, value: int) -> None:
        before, self._value = self._value, value
        if value & ~before & FAST_RESET:
            self._later.append((self._reset, ()))

    READERS = (_read,)
    WRITERS = (_write,)
