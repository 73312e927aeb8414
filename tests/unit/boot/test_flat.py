from __future__ import annotations

import pytest

from kvmpy.boot import load
from kvmpy.boot.entry import LONG, PROTECTED, REAL
from kvmpy.errors import ConfigError
from kvmpy.memory import GuestMemory
from kvmpy.units import MIB


@pytest.fixture
def memory():
    with GuestMemory(2 * MIB) as memory:
        yield memory


@pytest.mark.parametrize(
    ("protocol", "mode", "address"),
    [
        ("flat16", REAL, 0x7C00),
        ("flat32", PROTECTED, MIB),
        ("flat64", LONG, MIB),
        ("flat16@0x600", REAL, 0x600),
        ("flat64@0x180000", LONG, 0x180000),
        ("flat32@1572864", PROTECTED, 0x180000),
    ],
)
def test_where_and_how(memory, protocol, mode, address):
    entry = load(memory, b"code", protocol=protocol)
    assert (entry.mode, entry.rip) == (mode, address)
    assert memory.read(address, 4) == b"code"
    assert entry.description == f"flat binary, {protocol[4:6]}-bit, at {address:#x}"


@pytest.mark.parametrize("protocol", ["flat16@-1", "flat32@", "flat32@x", "flat64@2M", "flat32@" + "1" * 5000])
def test_addresses_that_are_none(memory, protocol):
    with pytest.raises(ConfigError, match="protocol"):
        load(memory, b"code", protocol=protocol)


@pytest.mark.parametrize(
    "protocol", ["flat32@0x200000", "flat32@0x1ffffd", "flat64@0xffffffffffffffff", "flat16@0x100000"]
)
def test_addresses_outside_of_ram(memory, protocol):
    with pytest.raises(ConfigError, match="protocol"):
        load(memory, b"code", protocol=protocol)


@pytest.mark.parametrize(
    ("protocol", "what"),
    [
        ("flat32@0xffd", "the GDT"),
        ("flat64@0x1fff", "the GDT"),
        ("flat64@0x8ffd", "the page tables"),
        ("flat64@0xefff", "the page tables"),
    ],
)
def test_addresses_where_something_of_ours_lies(memory, protocol, what):
    with pytest.raises(ConfigError, match=what):
        load(memory, b"code", protocol=protocol)


def test_a_flat_32_bit_guest_has_no_page_tables_in_its_way(memory):
    assert load(memory, b"code", protocol="flat32@0x9000").rip == 0x9000


@pytest.mark.parametrize(("option", "path"), [({"initrd": b"disk"}, "initrd"), ({"cmdline": "quiet"}, "append")])
def test_what_it_has_no_place_for(memory, option, path):
    with pytest.raises(ConfigError, match=f"{path}: a flat binary"):
        load(memory, b"code", protocol="flat32", **option)
