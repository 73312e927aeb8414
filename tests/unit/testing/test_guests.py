"""The ready guests: their bytes; tests/kvm runs them."""

from __future__ import annotations

import pytest

from kvmpy.testing import guests
from kvmpy.testing.asm import AsmError

HALT = bytes.fromhex("fa f4 eb fc")


def test_hello_holds_its_text_and_loads_its_address() -> None:
    code = guests.hello(0x3F8)
    address = guests.LOAD_ADDRESS + code.index(b"hello\n")
    assert code.startswith(b"\xfc\xba\xf8\x03\xbe" + address.to_bytes(2, "little") + b"\xb9\x06\x00")


def test_debug_exit_writes_the_value_and_halts() -> None:
    assert guests.debug_exit(5, 0x501) == bytes.fromhex("ba 01 05 b0 05 ee") + HALT


def test_debug_exit_refuses_more_than_a_byte() -> None:
    with pytest.raises(AsmError, match="0x100 does not fit into 8 bits"):
        guests.debug_exit(0x100)


def test_count_loop_counts_with_32_bits() -> None:
    assert guests.count_loop(0x12345678) == bytes.fromhex("66 b9 78 56 34 12 67 e3 04 66 49 75 fc") + HALT


def test_port_writes_writes_in_a_loop() -> None:
    expected = bytes.fromhex("ba e9 00 66 b9 03 00 00 00 67 e3 05 ee 66 49 75 fb") + HALT
    assert guests.port_writes(0xE9, 3) == expected


def test_boot_page_jumps_from_the_reset_vector_to_its_start() -> None:
    page = guests.boot_page(0xF4, 0x2A)
    assert len(page) == 4096
    assert page.startswith(bytes.fromhex("ba f4 00 b0 2a ee") + HALT)
    assert page[0xFF0:0xFF3] == b"\xe9" + (-0xFF3 & 0xFFFF).to_bytes(2, "little")


def test_firmware_ends_with_the_boot_page() -> None:
    image = guests.firmware()
    assert len(image) == 0x10000
    assert image[guests.RESET_VECTOR] == 0xE9
    assert image.endswith(guests.boot_page())
