"""kvmpy.devices.pci.function: sizing and mapping of BARs, the interrupt pin, watches, saved state."""

from __future__ import annotations

import pytest

from kvmpy.devices.pci.config import BAR0, COMMAND, EXTENDED_SIZE, INTERRUPT_PIN, STATUS, ConfigSpace
from kvmpy.devices.pci.function import IO, MEMORY32, MEMORY64, Bar, PciFunction, PciFunctionState
from kvmpy.errors import ImageError
from kvmpy.testing.fakes import FakeLine

IO_ON, MEMORY_ON, INTX_OFF = 0x0001, 0x0002, 0x0400


class FakeMapper:
    """Keeps what is mapped now, as (bar index, address, size), and how often something was."""

    def __init__(self):
        self.mapped = {}
        self.maps = 0

    def map(self, bar, address, size):
        assert bar not in self.mapped
        self.mapped[bar] = (bar.index, address, size)
        self.maps += 1

    def unmap(self, bar):
        del self.mapped[bar]

    @property
    def places(self):
        return sorted(self.mapped.values())


def config(size=0x100):
    return ConfigSpace(0x1AF4, 0x1041, 0x020000, size=size)


def read(function, offset, length=4):
    data = bytearray(length)
    function.read_config(offset, memoryview(data))
    return int.from_bytes(data, "little")


def write(function, offset, value, length=4):
    function.write_config(offset, memoryview(value.to_bytes(length, "little")))


@pytest.fixture
def mapper():
    return FakeMapper()


@pytest.fixture
def function(mapper):
    made = PciFunction(config(), mapper=mapper)
    made.add_bar(Bar(0, 0x40, object(), kind=IO))
    made.add_bar(Bar(1, 0x1000, object(), kind=MEMORY32))
    made.add_bar(Bar(4, 0x8000, object(), kind=MEMORY64, prefetchable=True))
    return made


@pytest.mark.parametrize(
    ("register", "sized"), [(0, 0xFFFFFFC1), (1, 0xFFFFF000), (2, 0), (4, 0xFFFF800C), (5, 0xFFFFFFFF)]
)
def test_a_bar_says_its_kind_and_size(function, register, sized):
    write(function, BAR0 + 4 * register, 0xFFFFFFFF)
    assert read(function, BAR0 + 4 * register) == sized


def test_a_bar_is_mapped_when_its_space_is_switched_on(function, mapper):
    write(function, BAR0 + 4, 0xD0000000)
    assert mapper.places == []
    write(function, COMMAND, MEMORY_ON, 2)
    assert mapper.places == [(1, 0xD0000000, 0x1000)]
    assert function.bars[1].address == 0xD0000000


def test_ports_and_memory_are_switched_on_apart(function, mapper):
    write(function, BAR0, 0xC000)
    write(function, BAR0 + 4, 0xD0000000)
    write(function, COMMAND, IO_ON, 2)
    assert mapper.places == [(0, 0xC000, 0x40)]


def test_a_bar_of_64_bits_goes_above_4_gib(function, mapper):
    write(function, BAR0 + 16, 0x8000)
    write(function, BAR0 + 20, 0x12)
    write(function, COMMAND, MEMORY_ON, 2)
    assert mapper.places == [(4, 0x12_0000_8000, 0x8000)]


def test_a_bar_moves(function, mapper):
    write(function, COMMAND, MEMORY_ON, 2)
    write(function, BAR0 + 4, 0xD0000000)
    write(function, BAR0 + 4, 0xD0001000)
    assert mapper.places == [(1, 0xD0001000, 0x1000)]


def test_a_bar_goes_when_its_space_is_switched_off(function, mapper):
    write(function, BAR0 + 4, 0xD0000000)
    write(function, COMMAND, MEMORY_ON, 2)
    write(function, COMMAND, 0, 2)
    assert mapper.places == []
    assert function.bars[1].address is None


def test_the_same_address_again_maps_nothing_anew(function, mapper):
    write(function, COMMAND, MEMORY_ON, 2)
    write(function, BAR0 + 4, 0xD0000000)
    write(function, BAR0 + 4, 0xD0000000)
    assert mapper.maps == 1


def test_sizing_maps_nothing(function, mapper):
    write(function, COMMAND, IO_ON | MEMORY_ON, 2)
    for register in range(6):
        write(function, BAR0 + 4 * register, 0xFFFFFFFF)
    assert mapper.places == []


def test_ports_above_64_ki_are_no_place_for_a_bar(function, mapper):
    write(function, COMMAND, IO_ON, 2)
    write(function, BAR0, 0xD0000000)
    assert mapper.places == []


@pytest.mark.parametrize(
    ("index", "size", "kind"),
    [(0, 0x18, IO), (0, 2, IO), (0, 0x200, IO), (6, 0x10, MEMORY32), (5, 0x10, MEMORY64), (0, 8, MEMORY32)],
)
def test_a_bar_that_cannot_be_is_refused(index, size, kind):
    with pytest.raises(ValueError, match="BAR"):
        Bar(index, size, object(), kind=kind)


@pytest.mark.parametrize("index", [0, 1, 4, 5])
def test_a_taken_bar_is_refused(function, index):
    with pytest.raises(ValueError, match="taken"):
        function.add_bar(Bar(index, 0x10, object()))


def test_without_a_mapper_a_bar_keeps_its_address():
    function = PciFunction(config())
    function.add_bar(Bar(0, 0x10, object()))
    write(function, COMMAND, MEMORY_ON, 2)
    write(function, BAR0, 0xD0000000)
    assert function.bars[0].address == 0xD0000000


def test_reads_past_the_end_of_a_conventional_function_are_zero(function):
    assert read(function, 0x100) == 0
    assert read(function, 0xFE) == 0


def test_writes_past_the_end_do_nothing(function):
    before = function.save()
    write(function, 0x100, 0xFFFFFFFF)
    write(function, 0xFE, 0xFFFFFFFF)
    assert function.save() == before


def test_extended_space_is_read(mapper):
    space = config(EXTENDED_SIZE)
    space.define(0x100, 4, 0x12345678)
    assert read(PciFunction(space), 0x100) == 0x12345678


def test_without_an_interrupt_line_there_is_no_pin(function):
    assert read(function, INTERRUPT_PIN, 1) == 0


def test_the_interrupt_line_follows_the_device():
    line = FakeLine()
    function = PciFunction(config(), intx=line)
    assert read(function, INTERRUPT_PIN, 1) == 1
    function.set_interrupt(True)
    assert line.level
    assert read(function, STATUS, 2) & 0x8
    function.set_interrupt(False)
    assert not line.level


def test_a_masked_interrupt_only_shows_in_status():
    line = FakeLine()
    function = PciFunction(config(), intx=line)
    write(function, COMMAND, INTX_OFF, 2)
    function.set_interrupt(True)
    assert not line.level
    assert read(function, STATUS, 2) & 0x8
    write(function, COMMAND, 0, 2)
    assert line.level


def test_a_watch_hears_of_writes_that_touch_it(function):
    heard = []
    function.watch(0x42, 2, lambda: heard.append(function.save()))  # It may come back to the function.
    for offset, length in ((0x40, 2), (0x44, 4), (0x43, 1), (0x40, 4)):
        write(function, offset, 0, length)
    assert len(heard) == 2


def test_a_restored_function_is_mapped_where_it_was(function, mapper):
    write(function, BAR0 + 4, 0xD0000000)
    write(function, COMMAND, MEMORY_ON, 2)
    other_mapper = FakeMapper()
    other = PciFunction(config(), mapper=other_mapper)
    other.add_bar(Bar(0, 0x40, object(), kind=IO))
    other.add_bar(Bar(1, 0x1000, object()))
    other.add_bar(Bar(4, 0x8000, object(), kind=MEMORY64, prefetchable=True))
    other.restore(PciFunctionState.from_dict(function.save().to_dict()))
    assert other_mapper.places == [(1, 0xD0000000, 0x1000)]
    assert other.save() == function.save()


def test_the_state_of_another_device_is_refused(function):
    other = PciFunction(ConfigSpace(0x1AF4, 0x1042, 0))
    with pytest.raises(ImageError):
        function.restore(other.save())


@pytest.mark.parametrize("digits", ["", "00" * 255, "00" * 257])
def test_a_state_of_another_size_is_refused(function, digits):
    with pytest.raises(ImageError):
        function.restore(PciFunctionState(ids=function.save().ids, config=digits))


@pytest.mark.parametrize("digits", ["0", "zz", 5])
def test_nonsense_for_a_configuration_is_refused(digits):
    with pytest.raises(ImageError):
        PciFunctionState.from_dict({"ids": 0, "config": digits})
