"""The 16550A against its data sheet (PC16550D), register by register."""

from __future__ import annotations

import json

import pytest

from kvmpy.devices.legacy import serial_registers as s
from kvmpy.devices.legacy.serial import POLLS, Serial
from kvmpy.testing.fakes import FakeLine, Ports


class Port(Ports):
    """A serial port with its two sides: `inb`/`outb` for the guest, `sent` and `line` for what came out."""

    def __init__(self) -> None:
        self.line = FakeLine()
        self.sent = bytearray()
        self.uart = Serial(self.line, self.sent.extend)
        super().__init__(self.uart)

    def iir(self) -> int:
        return self.inb(s.IIR) & 0x0F

    def enable(self, interrupts: int, *, fifo: int = 0) -> Port:
        self.outb(s.MCR, s.MCR_OUT2)
        self.outb(s.FCR, fifo)
        self.outb(s.IER, interrupts)
        return self


@pytest.fixture
def port() -> Port:
    return Port()


def test_power_on_values(port):
    assert [port.inb(offset) for offset in range(8)] == [0, 0, s.IIR_NO_INT, 0, 0, s.LSR_THRE | s.LSR_TEMT, 0xB0, 0]


def test_a_written_byte_goes_out(port):
    port.outb(s.THR, ord("A"))
    assert port.sent == b"A"


def test_a_wide_write_at_thr_sends_its_first_byte_and_sets_ier(port):
    port.write(s.THR, b"A\x01")
    assert (port.sent, port.inb(s.IER)) == (b"A", 1)


def test_the_output_may_come_straight_back():
    uart = Serial(FakeLine(), lambda data: uart.receive(data))
    Ports(uart).outb(s.THR, ord("e"))
    assert Ports(uart).inb(s.RBR) == ord("e")


def test_scratch_keeps_its_value(port):
    port.outb(s.SCR, 0x5A)
    assert port.inb(s.SCR) == 0x5A


@pytest.mark.parametrize(("offset", "kept"), [(s.IER, 0x0F), (s.LCR, 0xFF), (s.MCR, 0x1F)])
def test_reserved_bits_read_zero(port, offset, kept):
    port.outb(offset, 0xFF)
    assert port.inb(offset) == kept


def test_status_registers_cannot_be_written(port):
    port.outb(s.LSR, 0)
    port.outb(s.MSR, 0)
    assert (port.inb(s.LSR), port.inb(s.MSR)) == (0x60, 0xB0)


def test_dlab_shows_the_divisor_in_place_of_data_and_ier(port):
    port.outb(s.IER, s.IER_RDI)
    port.outb(s.LCR, s.LCR_DLAB | s.LCR_WLEN8)
    port.write(s.DLL, b"\x0c\x01")
    assert port.read(s.DLL, 2) == b"\x0c\x01"
    port.outb(s.LCR, s.LCR_WLEN8)
    assert (port.inb(s.IER), port.inb(s.RBR), port.sent) == (s.IER_RDI, 0, b"")


# Receiving.


def test_without_fifo_there_is_room_for_one(port):
    assert port.uart.receive(b"xy") == 1
    assert port.inb(s.LSR) & s.LSR_DR
    assert port.inb(s.RBR) == ord("x")
    assert not port.inb(s.LSR) & s.LSR_DR


def test_with_fifo_there_is_room_for_sixteen_in_order(port):
    port.outb(s.FCR, s.FCR_ENABLE_FIFO)
    assert port.uart.receive(bytes(range(20))) == 16
    assert [port.inb(s.RBR) for _ in range(16)] == list(range(16))


def test_an_empty_receiver_reads_zero(port):
    assert port.inb(s.RBR) == 0


@pytest.mark.parametrize(("bits", "level"), list(enumerate(s.TRIGGER_LEVELS)))
def test_received_data_is_a_timeout_below_the_trigger_level(port, bits, level):
    port.enable(s.IER_RDI, fifo=s.FCR_ENABLE_FIFO | bits << 6)
    if level > 1:
        port.uart.receive(bytes(level - 1))
        assert port.iir() == s.IIR_RX_TIMEOUT
    port.uart.receive(b"!")
    assert port.iir() == s.IIR_RDI


def test_the_line_stays_up_until_the_fifo_is_empty(port):
    port.enable(s.IER_RDI, fifo=s.FCR_ENABLE_FIFO)
    port.uart.receive(b"ab")
    port.inb(s.RBR)
    assert port.line.level
    port.inb(s.RBR)
    assert (port.line.level, port.line.edges) == (False, 1)


def test_iir_shows_whether_the_fifo_is_on(port):
    assert port.inb(s.IIR) & 0xC0 == 0
    port.outb(s.FCR, s.FCR_ENABLE_FIFO)
    assert port.inb(s.IIR) & 0xC0 == 0xC0


def test_a_fifo_reset_loses_what_was_received(port):
    port.enable(s.IER_RDI, fifo=s.FCR_ENABLE_FIFO)
    port.uart.receive(b"abc")
    port.outb(s.FCR, s.FCR_ENABLE_FIFO | s.FCR_CLEAR_RCVR)
    assert not port.inb(s.LSR) & s.LSR_DR
    assert not port.line.level


def test_switching_the_fifo_on_or_off_keeps_what_was_received(port):
    port.outb(s.IER, s.IER_RDI)
    assert port.uart.receive(b"abc") == 1
    port.outb(s.FCR, s.FCR_ENABLE_FIFO)
    assert port.uart.receive(b"bc") == 2
    port.outb(s.FCR, 0)
    assert bytes(port.inb(s.RBR) for _ in range(3)) == b"abc"


def test_fifo_bits_without_the_enable_bit_are_not_taken(port):
    port.uart.receive(b"a")
    port.outb(s.FCR, s.FCR_CLEAR_RCVR | s.FCR_TRIGGER_MASK)
    assert port.inb(s.RBR) == ord("a")


# Room for more.


def test_on_room_is_called_once_the_guest_has_emptied_a_fifo_that_was_too_small(port):
    rest = bytearray(b"0123456789abcdefXYZ")
    port.outb(s.FCR, s.FCR_ENABLE_FIFO)

    def feed() -> None:
        del rest[: port.uart.receive(rest)]

    port.uart.on_room = feed
    feed()
    assert rest == b"XYZ"
    read = bytes(port.inb(s.RBR) for _ in range(19))
    assert (read, rest) == (b"0123456789abcdefXYZ", b"")


def test_on_room_stays_silent_when_everything_had_room(port):
    calls = []
    port.uart.on_room = lambda: calls.append(1)
    port.uart.receive(b"a")
    port.inb(s.RBR)
    assert calls == []


def test_on_room_comes_after_a_fifo_reset(port):
    calls = []
    port.uart.on_room = lambda: calls.append(1)
    port.uart.receive(b"ab")
    port.outb(s.FCR, s.FCR_ENABLE_FIFO)
    assert calls == [1]


def test_on_room_comes_when_a_driver_wants_what_is_received(port):
    calls = []
    port.uart.on_room = lambda: calls.append(1)
    port.outb(s.MCR, s.MCR_DTR | s.MCR_OUT2)
    assert not port.uart.listening  # A driver raises it first, and resets the FIFO after that.
    port.outb(s.IER, s.IER_RDI)
    port.outb(s.IER, s.IER_RDI)
    assert port.uart.listening
    assert calls == [1]


def test_a_driver_that_tries_the_interrupt_bits_does_not_listen(port):
    port.outb(s.MCR, s.MCR_DTR)
    port.outb(s.IER, 0x0F)
    assert not port.uart.listening


def test_on_room_comes_when_the_interrupts_are_let_out_last(port):
    calls = []
    port.uart.on_room = lambda: calls.append(1)
    port.outb(s.IER, s.IER_RDI)
    port.outb(s.MCR, s.MCR_DTR | s.MCR_OUT2)
    assert port.uart.listening
    assert calls == [1]


def test_on_room_comes_when_a_guest_polls_for_input(port):
    calls = []
    port.uart.on_room = lambda: calls.append(1)
    for _ in range(POLLS - 1):
        port.inb(s.LSR)
    assert not port.uart.listening
    port.inb(s.LSR)
    port.inb(s.LSR)
    assert port.uart.listening
    assert calls == [1]


def test_a_guest_that_asks_once_for_each_byte_it_sends_does_not_poll(port):
    for _ in range(3 * POLLS):
        port.inb(s.LSR)
        port.outb(s.THR, 65)
    assert not port.uart.listening


# Breaks and overruns.


def test_a_break_is_a_zero_byte_with_bi_cleared_by_reading_lsr(port):
    assert port.uart.receive_break()
    assert port.inb(s.LSR) & (s.LSR_BI | s.LSR_DR) == s.LSR_BI | s.LSR_DR
    assert not port.inb(s.LSR) & s.LSR_BI
    assert port.inb(s.RBR) == 0


def test_a_break_shows_when_it_is_next_to_be_read_and_before_in_fifoe(port):
    port.outb(s.FCR, s.FCR_ENABLE_FIFO)
    port.uart.receive(b"a")
    port.uart.receive_break()
    assert port.inb(s.LSR) & (s.LSR_BI | s.LSR_FIFOE) == s.LSR_FIFOE
    port.inb(s.RBR)
    assert port.inb(s.LSR) & (s.LSR_BI | s.LSR_FIFOE) == s.LSR_BI | s.LSR_FIFOE
    assert port.inb(s.LSR) & (s.LSR_BI | s.LSR_FIFOE) == 0


def test_a_break_raises_the_line_status_interrupt(port):
    port.enable(s.IER_RLSI)
    port.uart.receive_break()
    assert (port.iir(), port.line.level) == (s.IIR_RLSI, True)
    port.inb(s.LSR)
    assert (port.iir(), port.line.level) == (s.IIR_NO_INT, False)


def test_a_break_needs_room(port):
    port.uart.receive(b"a")
    assert not port.uart.receive_break()


@pytest.mark.parametrize(("fifo", "size", "first"), [(0, 1, 16), (s.FCR_ENABLE_FIFO, 16, 0)])
def test_an_overrun_loses_the_new_byte_in_fifo_mode_and_the_old_one_without(port, fifo, size, first):
    port.outb(s.FCR, fifo)
    port.outb(s.MCR, s.MCR_LOOP)
    for value in range(17):
        port.outb(s.THR, value)
    assert port.inb(s.LSR) & s.LSR_OE
    assert not port.inb(s.LSR) & s.LSR_OE
    assert [port.inb(s.RBR) for _ in range(size)] == list(range(first, first + size))
    assert port.uart.stats().overruns == 17 - size


# The transmitter's interrupt.


def test_enabling_thri_raises_it_and_reading_iir_clears_it(port):
    port.enable(s.IER_THRI)
    assert port.line.level
    assert port.iir() == s.IIR_THRI
    assert not port.line.level
    assert port.iir() == s.IIR_NO_INT


def test_thri_comes_back_after_each_byte(port):
    port.enable(s.IER_THRI)
    port.iir()
    port.outb(s.THR, 1)
    assert port.line.level
    assert port.iir() == s.IIR_THRI


def test_enabling_thri_anew_raises_it_anew(port):
    port.enable(s.IER_THRI)
    port.iir()
    port.outb(s.IER, s.IER_THRI)
    assert port.iir() == s.IIR_NO_INT
    port.outb(s.IER, 0)
    port.outb(s.IER, s.IER_THRI)
    assert port.iir() == s.IIR_THRI


def test_reading_iir_for_another_cause_leaves_thri_pending(port):
    port.enable(s.IER_THRI | s.IER_RDI)
    port.uart.receive(b"a")
    assert port.iir() == s.IIR_RDI
    port.inb(s.RBR)
    assert port.iir() == s.IIR_THRI


def test_priorities(port):
    port.enable(0x0F)
    port.uart.set_modem(0)
    port.uart.receive_break()
    seen = []
    for clear in (s.LSR, s.RBR, s.IIR, s.MSR):
        seen.append(port.iir() if clear != s.IIR else s.IIR_THRI)
        port.inb(clear)
    assert seen == [s.IIR_RLSI, s.IIR_RDI, s.IIR_THRI, s.IIR_MSI]
    assert port.iir() == s.IIR_NO_INT


def test_out2_gates_the_line_and_not_the_iir(port):
    port.outb(s.IER, s.IER_RDI)
    port.uart.receive(b"a")
    assert (port.iir(), port.line.level) == (s.IIR_RDI, False)
    port.outb(s.MCR, s.MCR_OUT2)
    assert port.line.level
    port.outb(s.MCR, 0)
    assert not port.line.level


# Modem lines and loopback.


@pytest.mark.parametrize(
    ("lines", "deltas"),
    [
        (s.MSR_DSR | s.MSR_DCD, s.MSR_DCTS),
        (s.MSR_CTS | s.MSR_DCD, s.MSR_DDSR),
        (s.MSR_CTS | s.MSR_DSR, s.MSR_DDCD),
        (s.MSR_CTS | s.MSR_DSR | s.MSR_DCD | s.MSR_RI, 0),
    ],
)
def test_modem_lines_show_with_their_deltas_until_read(port, lines, deltas):
    port.uart.set_modem(lines)
    assert port.inb(s.MSR) == lines | deltas
    assert port.inb(s.MSR) == lines


def test_ring_leaves_its_delta_when_it_ends(port):
    port.uart.set_modem(s.MSR_LINES)
    assert not port.inb(s.MSR) & s.MSR_TERI
    port.uart.set_modem(s.MSR_LINES & ~s.MSR_RI)
    assert port.inb(s.MSR) & s.MSR_TERI


def test_a_modem_change_interrupts_until_msr_is_read(port):
    port.enable(s.IER_MSI)
    port.uart.set_modem(0)
    assert (port.iir(), port.line.level) == (s.IIR_MSI, True)
    port.inb(s.MSR)
    assert (port.iir(), port.line.level) == (s.IIR_NO_INT, False)


@pytest.mark.parametrize(
    ("control", "status"),
    [
        (s.MCR_RTS, s.MSR_CTS),
        (s.MCR_DTR, s.MSR_DSR),
        (s.MCR_OUT1, s.MSR_RI),
        (s.MCR_OUT2, s.MSR_DCD),
        (s.MCR_OUT2 | s.MCR_RTS, 0x90),
    ],
)
def test_loopback_wires_modem_control_to_status(port, control, status):
    port.outb(s.MCR, s.MCR_LOOP | control)
    assert port.inb(s.MSR) & 0xF0 == status


def test_loopback_returns_bytes_and_keeps_both_ends_of_the_line_out(port):
    port.outb(s.MCR, s.MCR_LOOP)
    port.outb(s.THR, ord("l"))
    assert port.uart.receive(b"x") == 0
    assert not port.uart.receive_break()
    assert (port.inb(s.RBR), port.sent) == (ord("l"), b"")


def test_leaving_loopback_offers_room_to_who_was_refused(port):
    calls = []
    port.uart.on_room = lambda: calls.append(1)
    port.outb(s.MCR, s.MCR_LOOP)
    port.uart.receive(b"x")
    port.outb(s.MCR, 0)
    assert calls == [1]


def test_loopback_takes_out2_off_the_pin(port):
    port.enable(s.IER_THRI)
    port.outb(s.MCR, s.MCR_LOOP | s.MCR_OUT2)
    assert (port.line.level, port.iir()) == (False, s.IIR_THRI)


# State and counts.


def test_a_restored_port_goes_on_where_the_other_stopped(port):
    port.enable(s.IER_RDI | s.IER_RLSI, fifo=s.FCR_ENABLE_FIFO | 0x80)
    port.outb(s.LCR, s.LCR_WLEN8)
    port.outb(s.SCR, 9)
    port.uart.receive(b"abc")
    port.uart.receive_break()
    other = Port()
    other.uart.restore(s.SerialState.from_dict(json.loads(json.dumps(port.uart.save().to_dict()))))
    assert other.line.level
    assert [other.inb(offset) for offset in range(1, 8)] == [port.inb(offset) for offset in range(1, 8)]
    assert bytes(other.inb(s.RBR) for _ in range(4)) == b"abc\0"
    assert other.inb(s.LSR) & s.LSR_BI


def test_restoring_the_power_on_state_resets(port):
    port.enable(s.IER_THRI)
    port.uart.restore(s.SerialState())
    assert not port.line.level
    assert port.uart.save() == s.SerialState()


def test_an_impossible_fifo_leaves_no_room_and_does_no_harm(port):
    port.uart.restore(s.SerialState(fifo=[0x100] * 16, lines=0xFF, errors=1))
    assert port.uart.receive(b"x") == 0
    assert [port.inb(s.RBR) for _ in range(17)] == [0] * 17


def test_stats_count_both_ways_and_interrupts(port):
    port.enable(s.IER_RDI)
    port.uart.receive(b"ab")
    port.inb(s.RBR)
    port.uart.receive(b"b")
    port.outb(s.THR, 1)
    stats = port.uart.stats()
    assert (stats.received, stats.sent, stats.overruns, stats.interrupts) == (2, 1, 0, 2)
