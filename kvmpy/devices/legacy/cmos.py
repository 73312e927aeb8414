"""The MC146818 real-time clock and its 128 bytes of CMOS RAM (Motorola data sheet; ports 0x70 and 0x71 of a PC).

Nothing ticks here: time is the injected clock plus an offset, which the guest changes by setting the time, and
the flags of register C are worked out from the time that has passed since they were last looked at.
"""

from __future__ import annotations

from kvmpy.devices.legacy import rtc_time
from kvmpy.devices.registers import RegisterFile, read_ones
from kvmpy.devices.state import BYTE, State, integer, integers
from kvmpy.units import GIB, KIB, MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import ClassVar

    from kvmpy.devices.state import Fields
    from kvmpy.irq import InterruptLine

INDEX = 0  # the device's two ports
DATA = 1

CMOS_PORT = 0x70
CMOS_PORTS = 2

NMI_DISABLE = 0x80  # in the index

RTC_SECONDS = 0x00
RTC_SECONDS_ALARM = 0x01
RTC_MINUTES = 0x02
RTC_MINUTES_ALARM = 0x03
RTC_HOURS = 0x04
RTC_HOURS_ALARM = 0x05
RTC_DAY_OF_WEEK = 0x06
RTC_DAY_OF_MONTH = 0x07
RTC_MONTH = 0x08
RTC_YEAR = 0x09
RTC_REG_A = 0x0A
RTC_REG_B = 0x0B
RTC_REG_C = 0x0C
RTC_REG_D = 0x0D
RTC_CENTURY = 0x32

REG_A_UIP = 0x80  # update in progress
REG_A_DV = 0x70  # divider
REG_A_DV_32KHZ = 0x20
REG_A_DV_RESET = 0x60  # 110 and 111: the divider stands still
REG_A_RS = 0x0F  # periodic rate

REG_B_SET = 0x80  # the guest sets the time: no updates
REG_B_PIE = 0x40
REG_B_AIE = 0x20
REG_B_UIE = 0x10
REG_B_DM = 0x04  # binary, not BCD
REG_B_24H = 0x02

REG_C_IRQF = 0x80
REG_C_PF = 0x40
REG_C_AF = 0x20
REG_C_UF = 0x10

REG_D_VRT = 0x80  # the battery is good

# An update shows 244 us ahead and takes 1984 us (data sheet, table 6).
UIP_SECONDS = (244 + 1984) / 1_000_000

# An update follows half a second after the divider starts anew.
_RESTART_PHASE = 0.5

_TIME_REGISTERS = (
    RTC_SECONDS, RTC_MINUTES, RTC_HOURS, RTC_DAY_OF_WEEK, RTC_DAY_OF_MONTH, RTC_MONTH, RTC_YEAR, RTC_CENTURY,
)  # fmt: skip

# No registers make a year past 25,800, even in nonsense.
_CENTURY_OF_MICROSECONDS = 100 * 366 * 86400 * 1_000_000


class CmosState(State):
    """Index port, the 128 registers as bytes, pending `flags` of register C, and the clock's offset.

    `offset` counts microseconds from the host's clock to the guest's.
    """

    __slots__ = ("flags", "index", "offset", "registers")

    FIELDS: ClassVar[Fields] = {
        "index": BYTE,
        "registers": integers(128, 128, 0xFF),
        "flags": integer(0, 0x70),
        "offset": integer(-300 * _CENTURY_OF_MICROSECONDS, 300 * _CENTURY_OF_MICROSECONDS),
    }

    def __init__(self, *, index: int, registers: Iterable[int], flags: int, offset: int) -> None:
        self.index = index
        self.registers = list(registers)
        self.flags = flags
        self.offset = offset


class Cmos(RegisterFile):
    """Clock and CMOS RAM of a machine with `memory_below_4g` and `memory_above_4g` bytes of RAM.

    `clock` gives seconds since 1970 (UTC).  `irq`, when given, follows IRQF as of the guest's last access or
    the last `poll`, whichever is later.
    """

    __slots__ = ("_checked", "_clock", "_flags", "_index", "_irq", "_level", "_offset", "_registers")

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        memory_below_4g: int = 0,
        memory_above_4g: int = 0,
        irq: InterruptLine | None = None,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._irq = irq
        self._level = False
        self._index = 0
        self._flags = 0
        self._offset = 0.0
        self._registers = bytearray(128)
        self._registers[RTC_REG_A] = REG_A_DV_32KHZ | 6  # 1024 Hz, as a PC's firmware leaves it
        self._registers[RTC_REG_B] = REG_B_24H
        self._store_memory_size(memory_below_4g, memory_above_4g)
        self._checked = self._now()

    @property
    def nmi_disabled(self) -> bool:
        """Whether the guest has masked NMIs with the top bit of the index port."""
        return bool(self._index & NMI_DISABLE)

    def poll(self) -> float | None:
        """Brings flags and interrupt line up to date; returns in how many seconds to call again, or None.

        Only a guest that enables the clock's interrupts needs this, so None means after the next write.
        """
        with self._lock:
            self._catch_up()
            enabled = self._registers[RTC_REG_B]
            now = self._now()
            waits = []
            if enabled & REG_B_PIE and (rate := self._rate()):
                waits.append((1 - now * rate % 1) / rate)
            if enabled & (REG_B_AIE | REG_B_UIE) and not self._halted():
                waits.append(1 - now % 1)
            return min(waits, default=None)

    def save(self) -> CmosState:
        """All registers, the time as an offset to the clock."""
        with self._lock:
            self._catch_up()
            return CmosState(
                index=self._index,
                registers=self._registers,
                flags=self._flags,
                offset=round(self._offset * 1_000_000),
            )

    def restore(self, state: CmosState) -> None:
        """Takes over `state`: the guest's clock is as far off the host's as it was when saved."""
        with self._lock:
            self._index = state.index
            self._registers[:] = bytes(state.registers)
            self._flags = state.flags & (REG_C_PF | REG_C_AF | REG_C_UF)
            self._offset = state.offset / 1_000_000
            self._checked = self._now()
            self._level = not self._pending()
            self._update_line()

    # The two ports.

    def _write_index(self, value: int) -> None:
        self._index = value

    def _read_data(self) -> int:
        register = self._index & 0x7F
        if register in _TIME_REGISTERS:
            self._load_time()
        elif register == RTC_REG_A:
            return self._registers[RTC_REG_A] | (REG_A_UIP if self._updating() else 0)
        elif register == RTC_REG_C:
            self._catch_up()
            value = self._flags | (REG_C_IRQF if self._pending() else 0)
            self._flags = 0
            self._update_line()
            return value
        elif register == RTC_REG_D:
            return REG_D_VRT
        return self._registers[register]

    def _write_data(self, value: int) -> None:
        register = self._index & 0x7F
        if register in (RTC_REG_C, RTC_REG_D):
            return
        if register in (RTC_REG_A, RTC_REG_B):
            self._control(register, value)
            return
        if register in _TIME_REGISTERS:
            self._load_time()
        elif register in (RTC_SECONDS_ALARM, RTC_MINUTES_ALARM, RTC_HOURS_ALARM):
            self._catch_up()
        self._registers[register] = value
        if register in _TIME_REGISTERS and not self._halted():
            self._set_time(self._now() % 1)

    READERS = (read_ones, _read_data)
    WRITERS = (_write_index, _write_data)

    # Inside, with the lock held.

    def _now(self) -> float:
        """The guest's time in seconds since 1970."""
        return self._clock() + self._offset

    def _stopped(self) -> bool:
        return self._registers[RTC_REG_A] & REG_A_DV_RESET == REG_A_DV_RESET

    def _halted(self) -> bool:
        """Whether the time stands still in its registers, for the guest to set."""
        return bool(self._registers[RTC_REG_B] & REG_B_SET) or self._stopped()

    def _updating(self) -> bool:
        return not self._halted() and self._now() % 1 >= 1 - UIP_SECONDS

    def _rate(self) -> int:
        """Periodic interrupts a second; 0 is none (data sheet, table 5)."""
        select = self._registers[RTC_REG_A] & REG_A_RS
        if not select or self._stopped():
            return 0
        return 32768 >> (select + 6 if select <= 2 else select - 1)

    def _control(self, register: int, value: int) -> None:
        """A write of register A or B, either of which may halt the time or set it going again."""
        self._catch_up()
        self._load_time()
        halted, stopped = self._halted(), self._stopped()
        if register == RTC_REG_A:
            value &= ~REG_A_UIP
        elif value & REG_B_SET:
            value &= ~REG_B_UIE
        self._registers[register] = value
        if halted and not self._halted():
            self._set_time(_RESTART_PHASE if stopped else self._now() % 1)
        self._update_line()

    def _load_time(self) -> None:
        if not self._halted():
            mode = self._registers[RTC_REG_B]
            values = rtc_time.encode(self._now(), binary=bool(mode & REG_B_DM), hours24=bool(mode & REG_B_24H))
            for register, value in zip(_TIME_REGISTERS, values, strict=True):
                self._registers[register] = value

    def _set_time(self, phase: float) -> None:
        """Makes the time registers the time, `phase` of a second in."""
        mode = self._registers[RTC_REG_B]
        values = [self._registers[register] for register in _TIME_REGISTERS]
        seconds = rtc_time.decode(values, binary=bool(mode & REG_B_DM), hours24=bool(mode & REG_B_24H))
        self._offset = seconds + phase - self._clock()
        self._checked = self._now()

    def _catch_up(self) -> None:
        """Sets the flags for what has happened since the last time."""
        before, now = self._checked, self._now()
        self._checked = now
        rate = self._rate()
        if int(now * rate) > int(before * rate):
            self._flags |= REG_C_PF
        if int(now) > int(before) and not self._halted():
            self._flags |= REG_C_UF
            mode = self._registers[RTC_REG_B]
            alarm = [self._registers[r] for r in (RTC_SECONDS_ALARM, RTC_MINUTES_ALARM, RTC_HOURS_ALARM)]
            binary, hours24 = bool(mode & REG_B_DM), bool(mode & REG_B_24H)
            if rtc_time.alarm_within(alarm, int(before) + 1, int(now), binary=binary, hours24=hours24):
                self._flags |= REG_C_AF
        self._update_line()

    def _pending(self) -> bool:
        return bool(self._flags & self._registers[RTC_REG_B])

    def _update_line(self) -> None:
        level = self._pending()
        if level != self._level:
            self._level = level
            if self._irq is not None:
                self._irq.set(level)

    def _store_memory_size(self, below_4g: int, above_4g: int) -> None:
        """What a PC's firmware notes of the RAM: in KiB up to 64 MiB, in 64 KiB units from 16 MiB and from 4 GiB on."""
        base = min(below_4g, 640 * KIB) // KIB
        extended = min(max(below_4g - MIB, 0) // KIB, 0xFFFF)
        above_16m = min(max(min(below_4g, 4 * GIB) - 16 * MIB, 0) // (64 * KIB), 0xFFFF)
        high = min(above_4g // (64 * KIB), 0xFFFFFF)
        for register, value, length in (
            (0x15, base, 2),
            (0x17, extended, 2),
            (0x30, extended, 2),
            (0x34, above_16m, 2),
            (0x5B, high, 3),
        ):
            self._registers[register : register + length] = value.to_bytes(length, "little")
