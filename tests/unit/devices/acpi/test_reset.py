"""The reset control register."""

from __future__ import annotations

import pytest

from kvmpy.devices.acpi.reset import ResetControl, ResetState
from kvmpy.testing.fakes import Ports
from kvmpy.x86.acpi.hardware import RESET_CONTROL


@pytest.fixture
def resets():
    return []


@pytest.fixture
def ports(resets):
    return Ports(ResetControl(lambda: resets.append(1)))


def test_what_the_fadt_says_resets(ports, resets):
    ports.outb(0, RESET_CONTROL[1])
    assert resets == [1]


@pytest.mark.parametrize("value", [0x04, 0x06, 0x0E])
def test_each_kind_of_reset(ports, resets, value):
    ports.outb(0, value)
    assert resets == [1]


@pytest.mark.parametrize("value", [0x00, 0x02, 0x08, 0xFB])
def test_choosing_a_kind_resets_nothing(ports, resets, value):
    ports.outb(0, value)
    assert resets == []
    assert ports.inb(0) == value & 0x0A


def test_it_survives_a_restore(ports, resets):
    ports.outb(0, 0x02)
    other = ResetControl(lambda: resets.append(2))
    other.restore(ResetState.from_dict(ports.device.save().to_dict()))
    assert Ports(other).inb(0) == 0x02
    other.restore(ResetState(value=0xFF))
    assert resets == []
