from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.boot.bzimage import BzImage, is_bzimage
from kvmpy.errors import ImageError, KvmpyError
from kvmpy.testing.images import HEADER_END, bzimage
from kvmpy.units import MIB

PAYLOAD = b"payload" * 100


def parse(data: bytes) -> BzImage:
    return BzImage(memoryview(data))


def patched(form: str, offset: int, value: int) -> bytes:
    image = bytearray(bzimage(PAYLOAD))
    struct.pack_into("<" + form, image, offset, value)
    return bytes(image)


def test_fields():
    image = parse(bzimage(PAYLOAD))
    assert image.protocol == "2.15"
    assert (image.cmdline_size, image.initrd_addr_max) == (2047, 0x7FFFFFFF)
    assert (image.pref_address, image.init_size) == (16 * MIB, MIB)
    assert (image.kernel_alignment, image.relocatable_kernel) == (2 * MIB, True)
    assert image.has_64bit_entry


def test_code_and_payload():
    image = parse(bzimage(PAYLOAD, head=b"h" * 48))
    assert image.code[:48] == b"h" * 48
    assert image.payload == PAYLOAD


def test_header_runs_from_0x1f1_to_where_the_jump_goes():
    file = bzimage(PAYLOAD)
    assert parse(file).header == file[0x1F1:HEADER_END]


@pytest.mark.parametrize(
    ("version", "field", "value"),
    [
        (0x0202, "initrd_addr_max", 0x37FFFFFF),
        (0x0205, "cmdline_size", 255),
        (0x0204, "relocatable_kernel", False),
        (0x0207, "payload", None),
        (0x0209, "init_size", 0),
        (0x0209, "pref_address", MIB),
        (0x020B, "has_64bit_entry", False),
    ],
)
def test_field_that_an_older_protocol_does_not_have(version, field, value):
    assert getattr(parse(bzimage(PAYLOAD, version=version)), field) == value
    assert getattr(parse(bzimage(PAYLOAD, version=version + 1)), field) != value


def test_fields_behind_the_header_are_not_read():
    # A jump that ends before init_size: what stands there is code.
    image = parse(patched("B", 0x201, 0x260 - 0x202))
    assert image.init_size == 0
    assert image.pref_address == 16 * MIB


def test_no_setup_sects_means_four():
    file = bytearray(bzimage(PAYLOAD))
    file[0x1F1] = 0
    assert parse(bytes(file[:2048]) + bytes(512) + bytes(file[2048:])).payload == PAYLOAD


def test_signature_behind_the_code_is_no_part_of_it():
    assert parse(bzimage(PAYLOAD) + b"signature").code == parse(bzimage(PAYLOAD)).code


@pytest.mark.parametrize(("offset", "length"), [(0, 100), (100, 0)])
def test_no_payload(offset, length):
    assert parse(bzimage(PAYLOAD, payload_offset=offset, payload_length=length)).payload is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(b"", "not a bzImage", id="empty"),
        pytest.param(bzimage(PAYLOAD)[:0x206], "cut short", id="cut behind the magic"),
        pytest.param(bzimage(PAYLOAD)[:0x400], "cut short", id="cut in the setup code"),
        pytest.param(bzimage(PAYLOAD)[:-100], "cut short", id="cut in the payload"),
        pytest.param(bzimage(PAYLOAD, loadflags=0), "zImage", id="zImage"),
        pytest.param(bzimage(PAYLOAD, version=0x0105), "zImage", id="older than 2.00"),
        pytest.param(bzimage(PAYLOAD, payload_length=1 << 31), "runs out", id="payload too long"),
        pytest.param(bzimage(PAYLOAD, payload_offset=0xFFFFFFFF), "runs out", id="payload far away"),
        pytest.param(patched("I", 0x1F4, 0xFFFFFFFF), "cut short", id="syssize"),
        pytest.param(patched("I", 0x1F4, 0), "cut short", id="no code"),
        pytest.param(patched("B", 0x1F1, 255), "cut short", id="setup_sects"),
        pytest.param(patched("B", 0x201, 2), "cut short", id="jump"),
    ],
)
def test_refused(image, message):
    with pytest.raises(ImageError, match=message):
        parse(image)


def test_is_bzimage():
    assert is_bzimage(memoryview(bzimage(PAYLOAD)))
    assert not is_bzimage(memoryview(bzimage(PAYLOAD)[:0x205]))
    assert not is_bzimage(memoryview(bytes(1024)))


@given(st.lists(st.tuples(st.integers(0x1F1, 0x270), st.integers(0, 255)), max_size=12), st.integers(0, 4000))
def test_no_header_raises_anything_else_or_leads_out_of_the_file(changes, length):
    data = bytearray(bzimage(PAYLOAD))
    for position, value in changes:
        data[position] = value
    data = data[: max(length, 0x206)]
    try:
        image = parse(bytes(data))
        assert len(image.code) <= len(data)
        assert len(image.header) <= 0x290 - 0x1F1
    except KvmpyError:
        pass
