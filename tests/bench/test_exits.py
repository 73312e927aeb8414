"""The parts of the benchmark `exits`: it measures what it says it does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy.bench.exits import ALONE_EXITS, EXITS, Counter, Guest
from kvmpy.errors import StateError


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest() as made:
        yield made


@pytest.mark.kvm
def test_every_write_of_the_guest_reaches_the_device(guest: Guest) -> None:
    counter = Counter()
    assert guest.python_ns(counter) > 0
    assert counter.count == EXITS


@pytest.mark.kvm
def test_the_guest_can_be_run_again_in_either_loop(guest: Guest) -> None:
    counter = Counter()
    guest.python_ns(counter)
    assert guest.c_ns() > 0
    guest.python_ns(counter)
    assert counter.count == 2 * EXITS


@pytest.mark.kvm
def test_without_kvm_the_device_sees_as_many_writes(guest: Guest) -> None:
    counter = Counter()
    assert guest.alone_ns(counter) > 0
    assert counter.count == ALONE_EXITS


@pytest.mark.kvm
def test_what_a_device_raises_comes_out(guest: Guest) -> None:
    class Broken(Counter):
        def write(self, offset: int, data: memoryview) -> None:
            raise StateError("broken")

    with pytest.raises(StateError, match="broken"):
        guest.python_ns(Broken())
