from __future__ import annotations

import pytest

from kvmpy.errors import ConfigError
from kvmpy.x86.acpi.gsi import FREE_PINS, GsiAllocator


def test_pins_that_isa_never_had_come_first():
    allocator = GsiAllocator()
    assert [allocator.take(f"disk{n}") for n in range(9)] == [*range(16, 24), 5]


def test_no_pin_is_given_twice_and_none_of_those_in_use():
    allocator = GsiAllocator()
    taken = [allocator.take(f"device{n}") for n in range(len(FREE_PINS))]
    assert len(set(taken)) == len(taken)
    assert not {0, 1, 2, 4, 8, 9, 13} & set(taken)


def test_running_out_is_a_configuration_error():
    allocator = GsiAllocator()
    for number in range(len(FREE_PINS)):
        allocator.take(f"device{number}")
    with pytest.raises(ConfigError, match="disk: no interrupt is left"):
        allocator.take("disk")


def test_a_claimed_pin_is_not_taken():
    allocator = GsiAllocator()
    assert allocator.claim(16, "com5") == 16
    assert allocator.take("disk") == 17


def test_a_pin_that_is_somebody_elses():
    with pytest.raises(ConfigError, match="interrupt 9 is that of SCI already"):
        GsiAllocator().claim(9, "disk")


@pytest.mark.parametrize("gsi", [-1, 24])
def test_what_is_no_pin(gsi):
    with pytest.raises(ConfigError, match="24 pins"):
        GsiAllocator().claim(gsi, "disk")
