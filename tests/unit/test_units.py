"""kvmpy.units: sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import ConfigError
from kvmpy.units import GIB, KIB, MIB, align_down, align_up, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256M", 256 * MIB),
        ("256", 256 * MIB),
        ("1G", GIB),
        ("1.5G", 3 * GIB // 2),
        ("64KiB", 64 * KIB),
        ("64kb", 64 * KIB),
        ("123B", 123),
        ("0x1000", 4096),
        (" 2 M".replace(" ", ""), 2 * MIB),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.3B", "nan", "inf", "1e400G", "1Q", "1MM", "0xzz", "²M", "9" * 99])
def test_what_is_no_size_is_refused_with_the_option_named(text):
    with pytest.raises(ConfigError) as caught:
        parse_size(text, path="memory")
    assert caught.value.path == "memory"
    assert str(caught.value).startswith("memory: ")


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_config_error(text):
    try:
        assert parse_size(text) >= 0
    except ConfigError:
        pass


@given(st.integers(0, 1 << 60))
def test_a_size_that_is_written_is_read_back(size):
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 1 << 60), st.integers(0, 30))
def test_alignment_goes_to_the_nearest_multiple(value, shift):
    alignment = 1 << shift
    low, high = align_down(value, alignment), align_up(value, alignment)
    assert low % alignment == high % alignment == 0
    assert low <= value <= high
    assert high - low in (0, alignment)
