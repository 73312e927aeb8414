"""Where a trampoline may go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmpy.machine.assist.syscall import find_padding

SIZE = 40


def test_a_run_between_two_functions():
    text = b"\xc3" + b"\xcc" * 63 + b"\x90" * 64
    assert find_padding(text, SIZE) == 16


def test_a_run_that_is_too_short():
    assert find_padding(b"\xc3" * 16 + b"\xcc" * 47 + b"\x90" * 16, SIZE) is None


def test_a_long_run_that_alignment_makes_too_short():
    assert find_padding(b"\xc3" + b"\xcc" * 54 + b"\xc3", SIZE) is None


def test_a_later_run_when_the_first_is_too_short():
    text = (b"\xc3" + b"\xcc" * 50).ljust(64, b"\x90") + b"\xcc" * 64
    assert find_padding(text, SIZE) == 80


def test_no_padding_at_all():
    assert find_padding(b"\x90" * 4096, SIZE) is None


@given(st.lists(st.tuples(st.sampled_from([0xCC, 0x90, 0xC3]), st.integers(1, 90)), max_size=30))
def test_what_is_found_is_padding_with_padding_before_it(runs):
    text = b"".join(bytes([byte]) * count for byte, count in runs)
    offset = find_padding(text, SIZE)
    if offset is None:
        return
    assert offset % 16 == 0
    assert text[offset - 8 : offset + SIZE] == b"\xcc" * (8 + SIZE)
