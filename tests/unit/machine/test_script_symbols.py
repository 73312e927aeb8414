"""kvmpy.machine.script.symbols: names for addresses, from files that are not trusted."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpy.errors import ImageError
from kvmpy.machine.script.symbols import Symbols

SYSTEM_MAP = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T startup_64
ffffffff81000123 t helper
"""


def elf(bits=64):
    """A file with the symbols `start` (0x1000), `middle` (0x1010) and one that is undefined."""
    strings = b"\0start\0middle\0absent\0"
    rows = [(0, 0, 0, 0), (1, 0x12, 1, 0x1000), (7, 2, 1, 0x1010), (14, 0x10, 0, 0x5)]
    if bits == 64:
        table = b"".join(struct.pack("<IBxHQQ", name, info, home, value, 0) for name, info, home, value in rows)
        header, section = 0x40, lambda t, o, s, link: struct.pack("<IIQQQQIIQQ", 0, t, 0, 0, o, s, link, 0, 0, 0)
    else:
        table = b"".join(struct.pack("<IIIBxH", name, value, 0, info, home) for name, info, home, value in rows)
        header, section = 0x34, lambda t, o, s, link: struct.pack("<10I", 0, t, 0, 0, o, s, link, 0, 0, 0)
    at_table = header + len(strings)
    sections = section(0, 0, 0, 0) + section(3, header, len(strings), 0) + section(2, at_table, len(table), 1)
    start = at_table + len(table)
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    if bits == 64:
        head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, start, 0, 64, 0, 0, 64, 3, 1)
    else:
        head = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 0, start, 0, 52, 0, 0, 40, 3, 1)
    return head + strings + table + sections


@pytest.fixture
def load(tmp_path):
    def load(data):
        path = tmp_path / "symbols"
        path.write_bytes(data)
        return Symbols.load(path)

    return load


@pytest.mark.parametrize("bits", [32, 64])
def test_an_elf_file_has_its_defined_symbols(load, bits):
    symbols = load(elf(bits))
    assert dict.fromkeys(symbols) == dict.fromkeys(["start", "middle"])
    assert symbols.address("middle") == 0x1010


def test_a_system_map_has_its_symbols(load):
    symbols = load(SYSTEM_MAP.encode())
    assert symbols.address("startup_64") == symbols.address("_stext") == 0xFFFFFFFF81000000
    assert "fixed_percpu_data" not in symbols
    assert len(symbols) == 3


def test_the_nearest_symbol_is_the_last_before(load):
    symbols = load(SYSTEM_MAP.encode())
    assert symbols.nearest(0xFFFFFFFF81000130) == ("helper", 13)
    assert symbols.nearest(0x1000) is None
    assert symbols.describe(0xFFFFFFFF81000123) == "helper"
    assert symbols.describe(0xFFFFFFFF81000124) == "helper+0x1"
    assert symbols.describe(0x10) == "0x10"


def test_symbols_of_a_kernel_that_was_moved():
    assert Symbols({"one": 0x1000}).shifted(0x200).address("one") == 0x1200


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(KeyError, match="nothing"):
        Symbols().address("nothing")


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"hello\n", b"12 T\n", bytes(100), elf()[:0x30]])
def test_other_files_are_refused(load, data):
    with pytest.raises(ImageError):
        load(data)


def test_a_stripped_file_is_called_so(load):
    data = bytearray(elf())
    data[0x28:0x30] = bytes(8)
    with pytest.raises(ImageError, match="stripped"):
        load(bytes(data))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        Symbols.load(tmp_path / "none")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([32, 64]), st.dictionaries(st.integers(4, 330), st.integers(0, 255), max_size=8))
def test_a_damaged_elf_file_is_read_or_refused(load, bits, damage):
    data = bytearray(elf(bits))
    for at, byte in damage.items():
        data[at % len(data)] = byte
    try:
        load(bytes(data))
    except ImageError:
        pass
