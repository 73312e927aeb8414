"""The fixed power management registers, by ACPI 6.5, 4.8.3."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.acpi import power as p
from kvmpy.errors import ImageError
from kvmpy.testing.fakes import FakeClock, FakeLine, Ports
from kvmpy.x86.acpi.hardware import PM1_CNT, PM1_EN, PM1_STS, PM_TIMER_HZ, PM_TMR, SLEEP_CONTROL, SLEEP_STATUS


class Board:
    """The device with its collaborators, and its registers as a guest reads and writes them."""

    def __init__(self, clock=None):
        self.sci = FakeLine()
        self.offs = 0
        self.power = p.PowerManagement(self.sci, self.power_off, clock=clock)
        self.ports = Ports(self.power)

    def power_off(self):
        self.offs += 1
        # Whoever is called may come straight back.
        self.power.save()

    def word(self, register):
        return int.from_bytes(self.ports.read(register, 2), "little")

    def set_word(self, register, value):
        self.ports.write(register, struct.pack("<H", value))

    def timer(self):
        return int.from_bytes(self.ports.read(PM_TMR, 4), "little")


@pytest.fixture
def board():
    return Board()


def test_acpi_is_always_on(board):
    assert board.word(PM1_CNT) == p.SCI_EN
    board.set_word(PM1_CNT, 0)
    assert board.word(PM1_CNT) == p.SCI_EN


@pytest.mark.parametrize(
    ("press", "bit"),
    [(p.PowerManagement.press_power_button, 1 << 8), (p.PowerManagement.press_sleep_button, 1 << 9)],
    ids=["power", "sleep"],
)
def test_a_button_sets_its_bit_and_interrupts_when_enabled(board, press, bit):
    press(board.power)
    assert board.word(PM1_STS) == bit
    assert not board.sci.level
    board.set_word(PM1_EN, bit)
    assert board.sci.level
    board.set_word(PM1_STS, bit)
    assert board.word(PM1_STS) == 0
    assert not board.sci.level


def test_a_button_that_is_enabled_before(board):
    board.set_word(PM1_EN, p.PWRBTN_EN)
    board.power.press_power_button()
    board.power.press_power_button()
    assert board.sci.history == [True]


def test_clearing_one_event_leaves_the_other(board):
    board.set_word(PM1_EN, p.PWRBTN_EN | p.SLPBTN_EN)
    board.power.press_power_button()
    board.power.press_sleep_button()
    board.set_word(PM1_STS, p.PWRBTN_STS)
    assert board.word(PM1_STS) == p.SLPBTN_STS
    assert board.sci.level


def test_disabling_an_event_drops_the_interrupt_and_keeps_the_event(board):
    board.set_word(PM1_EN, p.PWRBTN_EN)
    board.power.press_power_button()
    board.set_word(PM1_EN, 0)
    assert not board.sci.level
    assert board.word(PM1_STS) == p.PWRBTN_STS


def test_soft_off(board):
    board.set_word(PM1_CNT, 5 << 10)
    assert board.offs == 0
    board.set_word(PM1_CNT, 5 << 10 | 1 << 13)
    assert board.offs == 1


def test_the_bit_that_puts_to_sleep_reads_as_zero(board):
    board.set_word(PM1_CNT, 5 << 10 | 1 << 13)
    assert board.word(PM1_CNT) == 5 << 10 | p.SCI_EN


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 6, 7])
def test_sleep_states_that_are_not_offered(board, kind):
    board.set_word(PM1_CNT, kind << 10 | 1 << 13)
    assert board.offs == 0


def test_soft_off_by_the_sleep_control_register(board):
    # 4.8.3.7: SLP_TYP is bits 2 to 4, SLP_EN bit 5.
    board.ports.outb(SLEEP_CONTROL, 5 << 2 | 1 << 5)
    assert board.offs == 1
    # The status register's WAK_STS is bit 7, and clear.
    assert board.ports.inb(SLEEP_STATUS) == 0


def test_event_block_in_one_access(board):
    board.power.press_power_button()
    board.ports.write(PM1_STS, struct.pack("<HH", 0, p.PWRBTN_EN))
    assert board.ports.read(PM1_STS, 4) == struct.pack("<HH", p.PWRBTN_STS, p.PWRBTN_EN)


def test_what_lies_outside_of_the_block(board):
    assert board.ports.read(10, 4) == b"\0\0\xff\xff"
    assert board.ports.read(12, 2) == b"\xff\xff"
    assert board.ports.read(-1, 2) == b"\xff\xff"
    board.ports.write(12, b"\xff\xff")
    board.ports.write(-4, b"\xff" * 4)
    assert board.power.save() == p.PowerState()


# The timer.


def test_timer_counts_at_its_frequency():
    clock = FakeClock(1_700_000_000.0)
    board = Board(clock)
    assert board.timer() == 0
    clock.advance(2.0)
    assert board.timer() == 2 * PM_TIMER_HZ


def test_timer_goes_round_after_32_bits():
    clock = FakeClock()
    board = Board(clock)
    clock.advance((1 << 32) / PM_TIMER_HZ + 1)
    assert abs(board.timer() - PM_TIMER_HZ) <= 1


def test_timer_cannot_be_written():
    board = Board(FakeClock())
    board.ports.write(PM_TMR, b"\xff" * 4)
    assert board.timer() == 0


def test_timer_interrupts_when_its_top_bit_changes():
    clock = FakeClock()
    board = Board(clock)
    board.set_word(PM1_EN, p.TMR_EN)
    wait = board.power.poll()
    assert wait == pytest.approx((1 << 31) / PM_TIMER_HZ)
    clock.advance(wait - 0.001)
    assert board.power.poll() == pytest.approx(0.001, abs=1e-6)
    assert not board.sci.level
    clock.advance(0.001)
    assert board.power.poll() is not None
    assert board.sci.level
    assert board.word(PM1_STS) == p.TMR_STS


def test_timer_status_shows_without_the_interrupt():
    clock = FakeClock()
    board = Board(clock)
    clock.advance((1 << 31) / PM_TIMER_HZ + 1)
    assert board.power.poll() is None
    assert board.word(PM1_STS) == p.TMR_STS
    board.set_word(PM1_STS, p.TMR_STS)
    assert board.word(PM1_STS) == 0


def test_a_clock_that_is_set_back_is_no_event():
    clock = FakeClock((1 << 31) / PM_TIMER_HZ * 1.5)
    board = Board(clock)
    clock.advance(-clock.now)
    assert board.word(PM1_STS) == 0


def test_without_a_timer_there_is_nothing_to_poll(board):
    board.set_word(PM1_EN, p.TMR_EN)
    assert board.power.poll() is None
    assert board.timer() == 0


# Saving.


def test_state_survives_a_restore():
    board, other = Board(), Board()
    board.set_word(PM1_EN, p.PWRBTN_EN)
    board.set_word(PM1_CNT, 3 << 10)
    board.power.press_power_button()
    other.power.restore(p.PowerState.from_dict(board.power.save().to_dict()))
    assert other.power.save() == board.power.save()
    assert other.sci.history == [True]


def test_timer_goes_on_where_it_was():
    clock, later = FakeClock(100.0), FakeClock(5000.0)
    board, other = Board(clock), Board(later)
    clock.advance(3.0)
    other.power.restore(board.power.save())
    assert other.timer() == board.timer()
    later.advance(1.0)
    assert other.timer() == board.timer() + PM_TIMER_HZ
    assert other.word(PM1_STS) == 0


def test_restoring_turns_nothing_off(board):
    board.power.restore(p.PowerState(control=0xFFFF, status=0xFFFF, enable=0xFFFF))
    assert board.offs == 0


def test_restoring_the_power_on_state_lowers_the_interrupt(board):
    board.set_word(PM1_EN, p.PWRBTN_EN)
    board.power.press_power_button()
    board.power.restore(p.PowerState())
    assert not board.sci.level


@pytest.mark.parametrize(("name", "value"), [("status", 0x10000), ("timer", 1 << 32), ("enable", -1)])
def test_an_impossible_state(name, value):
    with pytest.raises(ImageError, match=name):
        p.PowerState.from_dict({**p.PowerState().to_dict(), name: value})


@given(st.lists(st.tuples(st.integers(-8, 16), st.binary(min_size=1, max_size=8))))
def test_no_write_breaks_it(writes):
    board = Board()
    board.power.press_power_button()
    for offset, data in writes:
        board.ports.write(offset, data)
        board.ports.read(offset, len(data))
    status, enable = board.word(PM1_STS), board.word(PM1_EN)
    assert board.sci.level == bool(status & enable)
    p.PowerState.from_dict(board.power.save().to_dict())
