from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmpy.backends.escape import Escapes


class Keys:
    """Escapes that note what was asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.escapes = Escapes(
            lambda: self.seen.append("end"), lambda: self.seen.append("break"), lambda: self.seen.append("help")
        )


def test_plain_bytes_are_the_guests() -> None:
    keys = Keys()
    assert keys.escapes.filter(b"xhb\x03\x1a") == b"xhb\x03\x1a"
    assert keys.seen == []


def test_each_escape_does_its_thing_and_is_taken_out() -> None:
    keys = Keys()
    assert keys.escapes.filter(b"a\x01hb\x01bc\x01xd") == b"abcd"
    assert keys.seen == ["help", "break", "end"]


def test_an_escape_may_come_in_two_pieces() -> None:
    keys = Keys()
    assert keys.escapes.filter(b"a\x01") == b"a"
    assert keys.escapes.filter(b"xb") == b"b"
    assert keys.seen == ["end"]


def test_ctrl_a_twice_is_ctrl_a() -> None:
    keys = Keys()
    assert keys.escapes.filter(b"\x01\x01x") == b"\x01x"
    assert keys.seen == []


def test_an_unknown_escape_and_the_reserved_one_are_dropped() -> None:
    keys = Keys()
    assert keys.escapes.filter(b"\x01zq\x01c") == b"q"
    assert keys.seen == []


@given(st.binary(max_size=60), st.integers(1, 10))
def test_pieces_make_no_difference(data: bytes, step: int) -> None:
    whole, pieces = Keys(), Keys()
    expected = whole.escapes.filter(data)
    assert b"".join(pieces.escapes.filter(data[i : i + step]) for i in range(0, len(data), step)) == expected
    assert pieces.seen == whole.seen
