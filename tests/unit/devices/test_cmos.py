"""The MC146818 against its data sheet, and the memory sizes that a PC keeps in its RAM."""

from __future__ import annotations

import calendar
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.legacy import cmos as c
from kvmpy.devices.legacy import rtc_time
from kvmpy.testing.fakes import FakeClock, FakeLine, Ports
from kvmpy.units import GIB, MIB

# 2026-11-23 is a Monday.
NOON = calendar.timegm((2026, 11, 23, 12, 34, 56))
TIME = (c.RTC_CENTURY, c.RTC_YEAR, c.RTC_MONTH, c.RTC_DAY_OF_MONTH, c.RTC_HOURS, c.RTC_MINUTES, c.RTC_SECONDS)


class Chip(Ports):
    """A clock chip with a settable time; `chip[register]` goes through the two ports."""

    def __init__(self, now: float = NOON, **keywords: int) -> None:
        self.clock = FakeClock(now)
        self.line = FakeLine()
        self.cmos = c.Cmos(self.clock, irq=self.line, **keywords)
        super().__init__(self.cmos)

    def __getitem__(self, register: int) -> int:
        self.outb(c.INDEX, register)
        return self.inb(c.DATA)

    def __setitem__(self, register: int, value: int) -> None:
        self.outb(c.INDEX, register)
        self.outb(c.DATA, value)

    def time(self) -> list[int]:
        return [self[register] for register in TIME]


@pytest.fixture
def chip() -> Chip:
    return Chip()


def test_the_time_is_the_clocks_in_bcd_and_24_hours(chip):
    assert chip.time() == [0x20, 0x26, 0x11, 0x23, 0x12, 0x34, 0x56]
    assert chip[c.RTC_DAY_OF_WEEK] == 2


def test_binary_mode(chip):
    chip[c.RTC_REG_B] = c.REG_B_24H | c.REG_B_DM
    assert chip.time() == [20, 26, 11, 23, 12, 34, 56]


@pytest.mark.parametrize(("hour", "value"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)])
def test_twelve_hour_mode_reads_and_sets(hour, value):
    chip = Chip(calendar.timegm((2026, 1, 1, hour, 0, 0)))
    chip[c.RTC_REG_B] = 0
    assert chip[c.RTC_HOURS] == value
    chip[c.RTC_HOURS] = value
    chip[c.RTC_REG_B] = c.REG_B_24H | c.REG_B_DM
    assert chip[c.RTC_HOURS] == hour


def test_the_time_goes_on_with_the_clock(chip):
    chip.clock.advance(4)
    assert chip.time()[-2:] == [0x35, 0x00]


def set_time(chip: Chip, values: list[int]) -> None:
    """As Linux does it: SET, divider reset, the values, and both back."""
    control, select = chip[c.RTC_REG_B], chip[c.RTC_REG_A] & 0x7F
    chip[c.RTC_REG_B] = control | c.REG_B_SET
    chip[c.RTC_REG_A] = select | 0x70
    for register, value in zip(TIME, values, strict=True):
        chip[register] = value
    chip[c.RTC_REG_B] = control
    chip[c.RTC_REG_A] = select


def test_a_set_time_goes_on_from_there_half_a_second_later(chip):
    set_time(chip, [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59])
    chip.clock.advance(0.4)
    assert chip.time() == [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]
    chip.clock.advance(0.2)
    assert chip.time() == [0x20, 0x00, 0x01, 0x01, 0, 0, 0]


def test_time_stands_still_while_set_is_on(chip):
    chip[c.RTC_REG_B] = c.REG_B_24H | c.REG_B_SET
    chip.clock.advance(100)
    assert chip.time()[-1] == 0x56
    chip[c.RTC_REG_B] = c.REG_B_24H
    assert chip.time()[-2:] == [0x34, 0x56]


def test_a_register_written_while_running_changes_only_itself(chip):
    chip[c.RTC_HOURS] = 0x07
    assert chip.time() == [0x20, 0x26, 0x11, 0x23, 0x07, 0x34, 0x56]


@given(values=st.lists(st.integers(0, 255), min_size=7, max_size=7), mode=st.integers(0, 3), seconds=st.floats(0, 1e9))
def test_nonsense_times_do_no_harm(values, mode, seconds):
    chip = Chip()
    chip[c.RTC_REG_B] = mode << 1
    set_time(chip, values)
    chip.clock.advance(seconds)
    assert all(0 <= value <= 255 for value in chip.time())
    assert chip[c.RTC_REG_C] in (0, 0x40, 0x50, 0x70)
    c.CmosState.from_dict(chip.cmos.save().to_dict())


@given(seconds=st.integers(-(10**10), 10**11), binary=st.booleans(), hours24=st.booleans())
def test_encode_and_decode_are_inverse(seconds, binary, hours24):
    values = rtc_time.encode(seconds, binary=binary, hours24=hours24)
    decoded = rtc_time.decode(values, binary=binary, hours24=hours24)
    # The century register counts to 99.
    if 0 <= seconds + 62167219200 < 315569520000:
        assert decoded == seconds


# Status registers.


def test_uip_is_set_just_before_each_second_and_clear_otherwise(chip):
    seen = []
    for millisecond in range(2000):
        chip.clock.now = NOON + millisecond / 1000
        if chip[c.RTC_REG_A] & c.REG_A_UIP:
            seen.append(millisecond)
    assert seen == [998, 999, 1998, 1999]


@pytest.mark.parametrize(("register", "value"), [(c.RTC_REG_B, c.REG_B_SET), (c.RTC_REG_A, 0x70), (c.RTC_REG_A, 0x60)])
def test_uip_stays_clear_while_time_stands_still(chip, register, value):
    chip[register] = value
    chip.clock.advance(0.999)
    assert not chip[c.RTC_REG_A] & c.REG_A_UIP


def test_register_values_at_start(chip):
    assert [chip[register] for register in range(0x0A, 0x0E)] == [0x26, 0x02, 0, 0x80]


def test_uip_c_and_d_cannot_be_written(chip):
    chip[c.RTC_REG_A] = 0xFF & ~0x70 | 0x20
    chip[c.RTC_REG_C] = 0xFF
    chip[c.RTC_REG_D] = 0
    assert [chip[c.RTC_REG_A], chip[c.RTC_REG_C], chip[c.RTC_REG_D]] == [0x2F, 0, 0x80]


def test_set_clears_uie(chip):
    chip[c.RTC_REG_B] = c.REG_B_SET | c.REG_B_UIE | c.REG_B_24H
    assert chip[c.RTC_REG_B] == c.REG_B_SET | c.REG_B_24H


def test_update_and_periodic_flags_show_once(chip):
    chip.clock.advance(1)
    assert chip[c.RTC_REG_C] == c.REG_C_UF | c.REG_C_PF
    assert chip[c.RTC_REG_C] == 0


@pytest.mark.parametrize(("select", "rate"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates(chip, select, rate):
    chip[c.RTC_REG_A] = 0x20 | select
    chip[c.RTC_REG_B] = c.REG_B_24H | c.REG_B_PIE
    assert chip.cmos.poll() == pytest.approx(1 / rate)
    chip.clock.advance(0.9 / rate)
    assert not chip[c.RTC_REG_C] & c.REG_C_PF
    chip.clock.advance(0.2 / rate)
    assert chip[c.RTC_REG_C] & c.REG_C_PF


def test_no_periodic_flag_without_a_rate(chip):
    chip[c.RTC_REG_A] = 0x20
    chip.clock.advance(0.9)
    assert chip[c.RTC_REG_C] == 0


@pytest.mark.parametrize(
    ("alarm", "seconds", "hit"),
    [
        ((0x12, 0x34, 0x57), 1, True),
        ((0x12, 0x34, 0x58), 1, False),
        ((0x12, 0x34, 0x56), 86399, False),
        ((0x12, 0x34, 0x56), 86400, True),
        ((0x00, 0x00, 0x00), 3 * 86400, True),
        ((0xFF, 0xFF, 0x00), 4, True),
        ((0xFF, 0xFF, 0x00), 3, False),
        ((0xC0, 0x33, 0x10), 3600, True),
        ((0xC0, 0x33, 0x10), 3400, False),
        ((0xFF, 0xFF, 0xFF), 1, True),
        ((0x25, 0x00, 0x00), 3 * 86400, False),
        ((0xFF, 0x61, 0xFF), 3 * 86400, False),
        ((0xFF, 0xFF, 0x61), 3 * 86400, False),
    ],
)
def test_alarms(chip, alarm, seconds, hit):
    for register, value in zip((c.RTC_HOURS_ALARM, c.RTC_MINUTES_ALARM, c.RTC_SECONDS_ALARM), alarm, strict=True):
        chip[register] = value
        assert chip[register] == value
    chip.clock.advance(seconds)
    assert bool(chip[c.RTC_REG_C] & c.REG_C_AF) == hit


@given(
    alarm=st.tuples(*[st.integers(0, 59) | st.just(0xFF)] * 2, st.integers(0, 23) | st.just(0xFF)),
    first=st.integers(0, 90000),
    length=st.integers(0, 4000),
)
def test_alarm_search_agrees_with_looking_at_each_second(alarm, first, length):
    def rings(now: int) -> bool:
        fields = (now % 60, now // 60 % 60, now // 3600 % 24)
        return all(wanted in (0xFF, field) for wanted, field in zip(alarm, fields, strict=True))

    last = first + length
    found = rtc_time.alarm_within(alarm, first, last, binary=True, hours24=True)
    assert found == any(rings(now) for now in range(first, last + 1))


def test_poll_raises_the_line_and_reading_c_lowers_it(chip):
    chip[c.RTC_REG_B] = c.REG_B_24H | c.REG_B_UIE
    assert chip.cmos.poll() == pytest.approx(1)
    assert not chip.line.level
    chip.clock.advance(1)
    chip.cmos.poll()
    assert chip.line.level
    assert chip[c.RTC_REG_C] == c.REG_C_IRQF | c.REG_C_UF | c.REG_C_PF
    assert not chip.line.level


def test_poll_asks_for_nothing_without_interrupts(chip):
    assert chip.cmos.poll() is None


def test_enabling_an_interrupt_whose_flag_is_up_raises_the_line(chip):
    chip.clock.advance(1)
    chip[c.RTC_REG_B] = c.REG_B_24H | c.REG_B_AIE
    assert not chip.line.level
    chip[c.RTC_REG_B] = c.REG_B_24H | c.REG_B_UIE
    assert chip.line.level


def test_a_host_clock_that_steps_back_sets_no_flags(chip):
    chip.clock.advance(-3600)
    assert chip[c.RTC_REG_C] == 0


# CMOS RAM and the index port.


def test_ram_keeps_what_is_written_and_the_nmi_bit_is_no_part_of_the_index(chip):
    chip[0x40 | c.NMI_DISABLE] = 0x77
    assert chip.cmos.nmi_disabled
    assert chip[0x40] == 0x77
    assert not chip.cmos.nmi_disabled


def test_the_index_port_cannot_be_read(chip):
    assert chip.inb(c.INDEX) == 0xFF


@pytest.mark.parametrize(
    ("below", "above", "extended", "above_16m", "high"),
    [
        (1 * MIB, 0, 0, 0, 0),
        (16 * MIB, 0, 15 * 1024, 0, 0),
        (256 * MIB, 0, 0xFFFF, 240 * 16, 0),
        (3 * GIB, 5 * GIB, 0xFFFF, (3 * GIB - 16 * MIB) >> 16, 5 * GIB >> 16),
    ],
)
def test_memory_sizes(below, above, extended, above_16m, high):
    chip = Chip(memory_below_4g=below, memory_above_4g=above)

    def number(register: int, length: int) -> int:
        return sum(chip[register + index] << 8 * index for index in range(length))

    assert number(0x15, 2) == 640
    assert number(0x17, 2) == number(0x30, 2) == extended
    assert number(0x34, 2) == above_16m
    assert number(0x5B, 3) == high


def test_a_restored_chip_keeps_its_distance_to_the_clock(chip):
    set_time(chip, [0x20, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06])
    chip[0x50] = 5
    chip[c.RTC_REG_B] = c.REG_B_24H | c.REG_B_UIE
    chip.clock.advance(2)
    other = Chip(chip.clock.now + 60)
    other.cmos.restore(c.CmosState.from_dict(json.loads(json.dumps(chip.cmos.save().to_dict()))))
    assert other.line.level
    assert other[0x50] == 5
    assert other.time() == [0x20, 0x01, 0x02, 0x03, 0x04, 0x06, 0x08]


def test_the_time_between_save_and_restore_sets_no_flags(chip):
    other = Chip()
    other.clock.advance(5)
    other.cmos.restore(chip.cmos.save())
    assert other[c.RTC_REG_C] == 0
