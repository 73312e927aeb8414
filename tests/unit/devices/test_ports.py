"""Ports 0x61, 0x80 and 0x92."""

from __future__ import annotations

import pytest

from kvmpy.devices.legacy import ports as p
from kvmpy.testing.fakes import FakeClock, Ports


def test_control_b_keeps_its_lower_half():
    ports = Ports(p.SystemControlB(FakeClock()))
    ports.outb(0, 0xFF)
    assert ports.inb(0) & 0xDF == 0x0F


def test_the_refresh_bit_toggles_every_fifteen_microseconds():
    clock = FakeClock(1000.0)
    ports = Ports(p.SystemControlB(clock))
    seen = []
    for _ in range(8):
        seen.append(bool(ports.inb(0) & p.REFRESH_TOGGLE))
        clock.advance(p.REFRESH_SECONDS)
    assert seen in ([False, True] * 4, [True, False] * 4)


def test_timer_2_reads_high_without_a_pit():
    assert Ports(p.SystemControlB(FakeClock())).inb(0) & p.TIMER2_OUTPUT


def test_timer_2_is_asked_with_its_gate():
    gates = []
    ports = Ports(p.SystemControlB(FakeClock(), lambda gate: gates.append(gate) or gate))
    assert not ports.inb(0) & p.TIMER2_OUTPUT
    ports.outb(0, p.TIMER2_GATE)
    assert ports.inb(0) & p.TIMER2_OUTPUT
    assert gates == [False, True]


def test_post_codes_are_kept_and_counted():
    codes = p.PostCodes()
    for value in (1, 2, 0x55):
        Ports(codes).outb(0, value)
    assert (codes.last, codes.count, Ports(codes).inb(0)) == (0x55, 3, 0x55)


def test_control_a_resets_when_its_bit_rises():
    resets = []
    ports = Ports(p.SystemControlA(lambda: resets.append(1)))
    ports.outb(0, p.FAST_A20)
    assert resets == []
    ports.outb(0, p.FAST_A20 | p.FAST_RESET)
    ports.outb(0, p.FAST_A20 | p.FAST_RESET)
    assert resets == [1]


def test_control_a_has_a20_on_and_keeps_what_is_written():
    ports = Ports(p.SystemControlA(lambda: None))
    assert ports.inb(0) == p.FAST_A20
    ports.outb(0, 0)
    assert ports.inb(0) == 0


@pytest.mark.parametrize(
    "make",
    [p.PostCodes, lambda: p.SystemControlA(print), lambda: p.SystemControlB(FakeClock())],
    ids=["80", "92", "61"],
)
def test_they_survive_a_restore(make):
    device, other = make(), make()
    Ports(device).outb(0, 0x0E)
    other.restore(p.PortState.from_dict(device.save().to_dict()))
    assert Ports(other).inb(0) == Ports(device).inb(0)
    assert other.save() == device.save()
