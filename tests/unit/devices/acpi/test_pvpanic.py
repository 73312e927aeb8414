"""pvpanic."""

from __future__ import annotations

import pytest

from kvmpy.devices.acpi.pvpanic import PvPanic
from kvmpy.testing.fakes import Ports


@pytest.fixture
def told():
    return []


@pytest.fixture
def ports(told):
    return Ports(PvPanic(lambda: told.append("panic"), lambda: told.append("crash loaded")))


def test_it_tells_which_events_it_takes(ports, told):
    assert ports.inb(0) == 3
    assert Ports(PvPanic(lambda: told.append("panic"))).inb(0) == 1
    assert told == []


@pytest.mark.parametrize(
    ("value", "events"), [(1, ["panic"]), (2, ["crash loaded"]), (3, ["panic", "crash loaded"]), (0xFC, [])]
)
def test_events(ports, told, value, events):
    ports.outb(0, value)
    assert told == events


def test_an_event_that_was_not_offered(told):
    Ports(PvPanic(lambda: told.append("panic"))).outb(0, 2)
    assert told == []
