"""kvmpy.machine.gdb.packets: the wire, whatever comes over it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.machine.gdb.packets import (
    ACKNOWLEDGED,
    DAMAGED,
    INTERRUPT,
    MAX_PACKET,
    OVERSIZED,
    REFUSED,
    PacketReader,
    encode,
    escape,
    unescape,
)


def read(data: bytes) -> list[bytes | str]:
    return list(PacketReader().feed(data))


def test_a_packet_has_its_checksum():
    assert encode(b"OK") == b"$OK#9a"


def test_an_empty_packet_is_one():
    assert encode(b"") == b"$#00"
    assert read(b"$#00") == [b""]


def test_bytes_with_a_meaning_on_the_wire_are_escaped():
    assert escape(b"a$#}*b") == b"a}\x04}\x03}]}\nb"


@given(st.binary(max_size=300))
def test_what_is_encoded_is_read_back(data):
    assert read(encode(data)) == [data]


@given(st.binary(max_size=300))
def test_what_is_escaped_is_plain_and_comes_back(data):
    assert not set(escape(data)) & set(b"$#*")
    assert unescape(escape(data)) == data


def test_an_escape_of_nothing_is_nothing():
    assert unescape(b"ab}") == b"ab"


@given(st.lists(st.binary(max_size=40), max_size=5), st.data())
def test_it_does_not_matter_how_bytes_are_cut(packets, data):
    stream = b"+".join(encode(packet) for packet in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = PacketReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == read(stream)
    assert [one for one in found if isinstance(one, bytes)] == packets


def test_single_bytes_between_packets():
    assert read(b"+-\x03") == [ACKNOWLEDGED, REFUSED, INTERRUPT]


def test_other_bytes_between_packets_are_passed_over():
    assert read(b"\0abc\xff$g#67\r\n") == [b"g"]


def test_an_interrupt_byte_within_a_packet_is_data():
    assert read(encode(b"X0,1:\x03")) == [b"X0,1:\x03"]


@pytest.mark.parametrize("digits", [b"00", b"zz", b"+1", b" 9", b"\xff\xff"])
def test_a_wrong_checksum_is_damage(digits):
    assert read(b"$OK#" + digits) == [DAMAGED]


def test_a_checksum_may_have_capital_digits():
    assert read(b"$OK#9A") == [b"OK"]


def test_a_packet_that_lost_its_end_gives_way_to_the_next():
    assert read(b"$m1000,4$g#67") == [b"g"]


def test_the_longest_packet_is_read():
    data = b"a" * MAX_PACKET
    assert read(encode(data)) == [data]


@pytest.mark.parametrize("excess", [1, 2, 3, MAX_PACKET, 10 * MAX_PACKET])
def test_a_packet_that_is_too_long_is_said_to_be(excess):
    assert read(encode(b"a" * (MAX_PACKET + excess)) + b"$g#67") == [OVERSIZED, b"g"]


@pytest.mark.parametrize("piece", [b"$", b"a", b"$a" * 999, b"a" * 5000, b"$" + b"a" * MAX_PACKET])
def test_what_never_ends_is_not_kept(piece):
    reader = PacketReader()
    for byte in (b"$", *[piece] * (5 * MAX_PACKET // len(piece))):
        list(reader.feed(byte))
        assert len(reader._buffer) <= 2 * MAX_PACKET + 2


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"$", b"#", b"}", b"$g#67", b"+"]), max_size=30))
def test_no_stream_raises(pieces):
    reader = PacketReader()
    for piece in pieces:
        for event in reader.feed(piece):
            assert isinstance(event, bytes) or event in (INTERRUPT, ACKNOWLEDGED, REFUSED, DAMAGED, OVERSIZED)
