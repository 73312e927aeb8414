"""The fixed power management registers: buttons, soft off and, where there is one, the timer (ACPI 6.5, 4.8.3).

One block of twelve ports: PM1_STS, PM1_EN and PM1_CNT, 16 bits each, and behind a gap of two the 32-bit PM_TMR.
"""

from __future__ import annotations

import struct
from threading import Lock

from kvmpy.devices.state import State, integer
from kvmpy.x86.acpi.hardware import PM1_CNT, PM1_EN, PM1_STS, PM_PORTS, PM_TIMER_HZ, S5_SLEEP_TYPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from kvmpy.devices.state import Fields
    from kvmpy.irq import InterruptLine

# PM1 status; the enable register has the same bits, without WAK_STS.
TMR_STS = 1 << 0
GBL_STS = 1 << 5
PWRBTN_STS = 1 << 8
SLPBTN_STS = 1 << 9
RTC_STS = 1 << 10
WAK_STS = 1 << 15

TMR_EN = 1 << 0
GBL_EN = 1 << 5
PWRBTN_EN = 1 << 8
SLPBTN_EN = 1 << 9
RTC_EN = 1 << 10

SCI_EN = 1 << 0
BM_RLD = 1 << 1
SLP_TYP_SHIFT = 10
SLP_TYP = 7 << SLP_TYP_SHIFT
SLP_EN = 1 << 13

_STATUS = TMR_STS | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS | WAK_STS
_ENABLE = TMR_EN | GBL_EN | PWRBTN_EN | SLPBTN_EN | RTC_EN
_CONTROL_KEPT = BM_RLD | SLP_TYP

# TMR_STS is set whenever the timer's top bit changes.
_TIMER_MASK = 0xFFFFFFFF
_TIMER_HALF = 1 << 31

_BLOCK = struct.Struct("<HHH2xI")


class PowerState(State):
    """PM1_STS, PM1_EN and PM1_CNT, and the timer's count as it was when saved."""

    __slots__ = ("control", "enable", "status", "timer")

    FIELDS: ClassVar[Fields] = {
        "status": integer(0, 0xFFFF), "enable": integer(0, 0xFFFF), "control": integer(0, 0xFFFF),
        "timer": integer(0, _TIMER_MASK),
    }  # fmt: skip

    def __init__(self, *, status: int = 0, enable: int = 0, control: int = SCI_EN, timer: int = 0) -> None:
        self.status = status
        self.enable = enable
        self.control = control
        self.timer = timer


class PowerManagement:
    """The register block, twelve ports.

    `power_off` is called when the guest enters S5 (from the thread that wrote the register, with no lock held);
    other sleep states are not offered, and asking for one does nothing.  `sci`, level-triggered and active high, is
    high while an enabled event stands.  With a `clock` (in seconds) there is a timer of 3.579545 MHz; without one its
    ports read as zero.
    """

    __slots__ = ("_base", "_clock", "_control", "_enable", "_level", "_lock", "_power_off", "_sci", "_seen", "_status")

    _base: int
    _control: int
    _enable: int
    _seen: int
    _status: int

    def __init__(
        self, sci: InterruptLine, power_off: Callable[[], object], *, clock: Callable[[], float] | None = None
    ) -> None:
        self._sci = sci
        self._power_off = power_off
        self._clock = clock
        self._lock = Lock()
        self._level = False
        self._load(PowerState())

    # The host's side.

    def press_power_button(self) -> None:
        """The user asks the guest to shut down, from any thread."""
        self._raise(PWRBTN_STS)

    def press_sleep_button(self) -> None:
        """The user asks the guest to sleep, from any thread."""
        self._raise(SLPBTN_STS)

    def poll(self) -> float | None:
        """Brings TMR_STS and the interrupt up to date; in how many seconds to call again, or None.

        Only a guest that enables the timer's interrupt needs this, so None means after the next write.
        """
        with self._lock:
            self._catch_up()
            self._update()
            if self._clock is None or not self._enable & TMR_EN:
                return None
            return (_TIMER_HALF - self._ticks() % _TIMER_HALF) / PM_TIMER_HZ

    def save(self) -> PowerState:
        """The registers."""
        with self._lock:
            self._catch_up()
            return PowerState(
                status=self._status, enable=self._enable, control=self._control, timer=self._ticks() & _TIMER_MASK
            )

    def restore(self, state: PowerState) -> None:
        """Takes over `state` and sets the interrupt line anew; `PowerState()` is a reset."""
        with self._lock:
            self._load(state)
            self._level = not self._pending()
            self._update()

    # The guest's side.

    def read(self, offset: int, data: memoryview) -> None:
        """Fills `data` with the bytes of the registers from `offset` on."""
        with self._lock:
            self._catch_up()
            self._update()
            # One look at the timer, however wide the access.
            block = _BLOCK.pack(self._status, self._enable, self._control, self._ticks() & _TIMER_MASK)
        chosen = block[offset : offset + len(data)] if offset >= 0 else b""
        data[:] = chosen.ljust(len(data), b"\xff")

    def write(self, offset: int, data: memoryview) -> None:
        """Writes the bytes of `data` to the registers from `offset` on."""
        off = False
        with self._lock:
            self._catch_up()
            for port, value in enumerate(data, offset):
                if 0 <= port < PM_PORTS:
                    off |= self._write_byte(port, value)
            self._update()
        if off:
            self._power_off()

    # Inside, with the lock held.

    def _write_byte(self, port: int, value: int) -> bool:
        """Writes half a register; True when this turns the machine off."""
        register, shift = port & ~1, 8 * (port & 1)
        written, others = value << shift, 0xFF00 >> shift
        if register == PM1_STS:
            self._status &= ~written  # writing ones clears
        elif register == PM1_EN:
            self._enable = (self._enable & others | written) & _ENABLE
        elif register == PM1_CNT:
            self._control = (self._control & others | written) & _CONTROL_KEPT | SCI_EN
            return bool(written & SLP_EN) and (written & SLP_TYP) >> SLP_TYP_SHIFT == S5_SLEEP_TYPE
        return False

    def _load(self, state: PowerState) -> None:
        self._status = state.status & _STATUS
        self._enable = state.enable & _ENABLE
        self._control = state.control & _CONTROL_KEPT | SCI_EN
        self._base = 0
        self._base = state.timer - self._ticks()
        self._seen = self._ticks()

    def _ticks(self) -> int:
        """What the timer would count to if it had bits enough."""
        return 0 if self._clock is None else int(self._clock() * PM_TIMER_HZ) + self._base

    def _catch_up(self) -> None:
        ticks = self._ticks()
        # A clock that was set back has changed no bit.
        if ticks // _TIMER_HALF > self._seen // _TIMER_HALF:
            self._status |= TMR_STS
        self._seen = ticks

    def _raise(self, status: int) -> None:
        with self._lock:
            self._status |= status
            self._update()

    def _pending(self) -> bool:
        return bool(self._status & self._enable)

    def _update(self) -> None:
        level = self._pending()
        if level != self._level:
            self._level = level
            self._sci.set(level)
