"""The VM generation ID."""

from __future__ import annotations

import pytest

from kvmpy.devices.acpi.generation import GenerationState, VmGenerationId
from kvmpy.errors import GuestMemoryError, ImageError
from kvmpy.memory import GuestMemory
from kvmpy.units import MIB

ADDRESS = 0xEF000


class Numbers:
    """A source of randomness that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, length):
        self.calls += 1
        return bytes([self.calls]) * length


@pytest.fixture
def memory():
    with GuestMemory(MIB) as made:
        yield made


@pytest.fixture
def told():
    return []


@pytest.fixture
def generation(memory, told):
    # When the guest is told, the new identifier must be there.
    return VmGenerationId(memory, ADDRESS, lambda: told.append(memory.read(ADDRESS, 16)), random=Numbers())


def test_the_first_identifier_is_there_and_not_announced(generation, memory, told):
    assert memory.read(ADDRESS, 17) == b"\1" * 16 + b"\0"
    assert told == []


def test_a_new_one_is_written_before_it_is_announced(generation, told):
    generation.renew()
    assert told == [b"\2" * 16]


def test_its_page_is_marked_dirty(generation, memory):
    memory.clear_dirty()
    generation.renew()
    assert list(memory.dirty_pages()) == [ADDRESS]


def test_the_hosts_randomness_is_the_default(memory):
    first, second = (VmGenerationId(memory, ADDRESS, lambda: None).identifier for _ in range(2))
    assert first != second


def test_restoring_brings_the_old_one_back_in_silence(generation, memory, told):
    state = GenerationState.from_dict(generation.save().to_dict())
    generation.renew()
    told.clear()
    generation.restore(state)
    assert memory.read(ADDRESS, 16) == b"\1" * 16
    assert generation.identifier == b"\1" * 16
    assert told == []


@pytest.mark.parametrize("identifier", [[0] * 15, [0] * 17, [256] * 16, "x" * 16])
def test_an_impossible_state(identifier):
    with pytest.raises(ImageError, match="identifier"):
        GenerationState.from_dict({"identifier": identifier})


def test_an_address_that_is_no_memory(memory):
    with pytest.raises(GuestMemoryError):
        VmGenerationId(memory, MIB, lambda: None)
