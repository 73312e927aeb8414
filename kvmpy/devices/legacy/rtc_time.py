"""Time as the MC146818's registers hold it, to and from seconds since 1970.

Register values are always in the order seconds, minutes, hours, day of week, day of month, month, year, century.
`binary` is false for BCD; `hours24` is false for hours 1 to 12 with the top bit for the afternoon.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DAY = 86400
HOUR = 3600
MINUTE = 60

PM = 0x80

# An alarm register from this value on matches anything.
DONT_CARE = 0xC0


def encode(seconds: float, *, binary: bool, hours24: bool) -> list[int]:
    """The eight register values of a time."""
    now = time.gmtime(seconds // 1)
    hour = now.tm_hour if hours24 else (now.tm_hour - 1) % 12 + 1
    numbers = (
        now.tm_sec, now.tm_min, hour, (now.tm_wday + 1) % 7 + 1, now.tm_mday, now.tm_mon, now.tm_year % 100,
        now.tm_year // 100 % 100,
    )  # fmt: skip
    values = [number if binary else number // 10 << 4 | number % 10 for number in numbers]
    if not hours24 and now.tm_hour >= 12:
        values[2] |= PM
    return values


def decode(values: Sequence[int], *, binary: bool, hours24: bool) -> int:
    """Seconds since 1970 of eight register values; nonsense, such as month 40, counts on into the next years.

    The day of the week follows from the date and is not looked at.
    """
    second, minute, _, _, day, month, year, century = [_number(value, binary) for value in values]
    years, month = divmod(month - 1, 12)
    days = _days_before(century * 100 + year + years, month) + day - 1
    return days * DAY + _hour(values[2], binary, hours24) * HOUR + minute * MINUTE + second


def alarm_within(alarm: Sequence[int], first: int, last: int, *, binary: bool, hours24: bool) -> bool:
    """Whether the alarm (seconds, minutes, hours) goes off in one of the seconds from `first` to `last`."""
    second, minute = (None if value >= DONT_CARE else _number(value, binary) for value in alarm[:2])
    hour = None if alarm[2] >= DONT_CARE else _hour(alarm[2], binary, hours24)
    now = max(first, last - DAY + 1)
    # At each step to the start of the next hour or minute, so that a day takes at most some thousand.
    while now <= last:
        if hour is not None and now % DAY // HOUR != hour:
            now += HOUR - now % HOUR
        elif minute is not None and now % HOUR // MINUTE != minute:
            now += MINUTE - now % MINUTE
        elif second is None or now % MINUTE == second:
            return True
        elif now % MINUTE < second < MINUTE:
            now += second - now % MINUTE
        else:
            now += MINUTE - now % MINUTE
    return False


def _number(value: int, binary: bool) -> int:
    return value if binary else (value >> 4) * 10 + (value & 0x0F)


def _hour(value: int, binary: bool, hours24: bool) -> int:
    if hours24:
        return _number(value, binary)
    return _number(value & ~PM, binary) % 12 + (12 if value & PM else 0)


def _days_before(year: int, month: int) -> int:
    """Days from 1970 to the first of `month` (0 to 11) in the Gregorian calendar."""
    # Counted in years that begin in March, so that the leap day comes last.
    year, month = (year, month - 2) if month >= 2 else (year - 1, month + 10)
    leaps = year // 4 - year // 100 + year // 400
    return year * 365 + leaps + (month * 153 + 2) // 5 - 719468
