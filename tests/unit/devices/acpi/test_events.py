"""The generic event device's register."""

from __future__ import annotations

import pytest

from kvmpy.devices.acpi.events import EventState, GenericEventDevice
from kvmpy.testing.fakes import FakeLine, Ports
from kvmpy.x86.acpi.hardware import EVENT_POWER_BUTTON, EVENT_SLEEP_BUTTON, EVENT_VM_GENERATION


@pytest.fixture
def line():
    return FakeLine()


@pytest.fixture
def device(line):
    return GenericEventDevice(line)


@pytest.mark.parametrize(
    ("happen", "bit"),
    [
        (GenericEventDevice.press_power_button, EVENT_POWER_BUTTON),
        (GenericEventDevice.press_sleep_button, EVENT_SLEEP_BUTTON),
        (GenericEventDevice.generation_changed, EVENT_VM_GENERATION),
    ],
)
def test_an_event_interrupts_and_is_read_once(device, line, happen, bit):
    happen(device)
    assert line.level
    assert Ports(device).inb(0) == bit
    assert not line.level
    assert Ports(device).inb(0) == 0


def test_events_before_the_guest_reads_come_together(device, line):
    device.press_power_button()
    device.generation_changed()
    assert line.edges == 1
    assert Ports(device).inb(0) == EVENT_POWER_BUTTON | EVENT_VM_GENERATION


def test_the_next_event_interrupts_again(device, line):
    device.press_power_button()
    Ports(device).inb(0)
    device.press_power_button()
    assert line.edges == 2


def test_writing_does_nothing(device):
    device.press_power_button()
    Ports(device).outb(0, 0xFF)
    assert Ports(device).inb(0) == EVENT_POWER_BUTTON


def test_an_unread_event_interrupts_after_a_restore(device):
    device.generation_changed()
    line = FakeLine()
    other = GenericEventDevice(line)
    other.restore(EventState.from_dict(device.save().to_dict()))
    assert line.edges == 1
    assert Ports(other).inb(0) == EVENT_VM_GENERATION
