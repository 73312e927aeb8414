from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.boot import unpack as module
from kvmpy.boot.unpack import MissingLibraryError, recognise, unpack
from kvmpy.errors import ImageError, KvmpyError
from kvmpy.units import KIB, MIB

PLAIN = b"".join(struct.pack("<I", number * number & 0xFFFF) for number in range(20_000))


def lz4_legacy(data: bytes, block: int = 8 * MIB) -> bytes:
    """What `lz4 -l` writes."""
    blocks = [lz4.block.compress(data[at : at + block], store_size=False) for at in range(0, len(data), block)]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(packed)) + packed for packed in blocks)


def lzop_stored(data: bytes) -> bytes:
    """An lzop container that holds `data` as it is."""
    header = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHBBI", 0x1030, 0x20A0, 0x0940, 3, 9, 0) + bytes(12 + 1 + 4)
    return header + struct.pack(">II", len(data), len(data)) + data + bytes(4)


def xz(data: bytes) -> bytes:
    """As a kernel's build does it: CRC32, and the filter for x86 code."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 1}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


PACKERS = {
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": bz2.compress,
    "xz": xz,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE, preset=1),
    "lz4": lz4_legacy,
    "zstd": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
    "lzo": lzop_stored,
}
PACKED = {name: packer(PLAIN) for name, packer in PACKERS.items()}

each_format = pytest.mark.parametrize("name", PACKERS)


def run(data: bytes, limit: int = MIB) -> bytes:
    return unpack(memoryview(data), limit)


def test_these_are_all_formats():
    assert set(PACKERS) == {name for _, name in module.MAGICS}


@each_format
def test_recognised(name):
    assert recognise(memoryview(PACKED[name])) == name


@pytest.mark.parametrize("data", [b"", b"\x1f", b"\x7fELF", bytes(16)])
def test_not_recognised(data):
    assert recognise(memoryview(data)) is None
    with pytest.raises(ImageError, match="no compression format"):
        run(data)


@each_format
def test_comes_back(name):
    assert run(PACKED[name]) == PLAIN


@each_format
def test_the_appended_size_is_left_alone(name):
    assert run(PACKED[name] + struct.pack("<I", len(PLAIN))) == PLAIN


@each_format
def test_exactly_the_limit(name):
    assert run(PACKED[name], len(PLAIN)) == PLAIN


@each_format
def test_more_than_the_limit(name):
    with pytest.raises(ImageError, match="larger than"):
        run(PACKED[name], len(PLAIN) - 1)


@pytest.mark.parametrize("name", [name for name in PACKERS if name != "lzo"])
def test_a_bomb_ends_early(name):
    bomb = PACKERS[name](bytes(64 * MIB))
    assert len(bomb) < MIB
    with pytest.raises(ImageError, match="larger than"):
        run(bomb, 64 * KIB)


@each_format
@pytest.mark.parametrize("part", [0.5, 0.99])
def test_cut_short(name, part):
    with pytest.raises(ImageError):
        run(PACKED[name][: int(len(PACKED[name]) * part)])


@each_format
def test_damaged(name):
    data = PACKED[name]
    with pytest.raises(ImageError):
        run(data[:16] + b"\xff" * (len(data) - 16))


def test_lz4_of_several_blocks():
    data = PLAIN * 3
    assert run(lz4_legacy(data, 64 * KIB)) == data


def test_lz4_archives_one_behind_another():
    assert run(lz4_legacy(b"first ") + lz4_legacy(b"second") + bytes(4)) == b"first second"


def test_lz4_blocks_that_hold_next_to_nothing_do_not_go_on_for_ever():
    with pytest.raises(ImageError, match="damaged"):
        run(lz4_legacy(b"x" * 5000, 1))


@pytest.mark.parametrize(
    ("name", "imported", "library"), [("lz4", "lz4.block", "lz4"), ("zstd", "zstandard", "zstandard")]
)
def test_missing_library_names_the_extra(name, imported, library, monkeypatch):
    monkeypatch.setitem(sys.modules, imported, None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'kvmpy\[images\]'") as caught:
        run(PACKED[name])
    assert (caught.value.format, caught.value.library) == (name, library)


@given(st.sampled_from(sorted(PACKERS)), st.data())
def test_no_changed_bytes_raise_anything_else(name, data):
    damaged = bytearray(PACKED[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 400) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(run(bytes(damaged), 200_000)) <= 200_000
    except KvmpyError:
        pass


@given(st.sampled_from(module.MAGICS), st.binary(max_size=300))
def test_no_bytes_behind_a_magic_raise_anything_else(magic, data):
    try:
        assert len(run(magic[0] + data, 100_000)) <= 100_000
    except KvmpyError:
        pass
