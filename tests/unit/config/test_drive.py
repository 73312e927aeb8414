from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.backends import disk
from kvmpy.config import drive
from kvmpy.config.drive import DriveConfig, parse_drive
from kvmpy.devices.virtio import block
from kvmpy.errors import ConfigError


def fields(config):
    return {name: getattr(config, name) for name in DriveConfig.__slots__}


PLAIN = {"path": "d", "read_only": False, "cache": "writeback", "engine": "auto", "queues": 1, "serial": ""}


@pytest.mark.parametrize(
    ("text", "differs"),
    [
        ("d", {}),
        ("a b/c=d.img", {"path": "a b/c=d.img"}),
        ("d,ro", {"read_only": True}),
        ("d,cache=none,ro", {"cache": "none", "read_only": True}),
        ("d,engine=threads", {"engine": "threads"}),
        ("d,queues=16", {"queues": 16}),
        ("d,serial=a=b c", {"serial": "a=b c"}),
        ("a,,b,,,ro", {"path": "a,b,", "read_only": True}),
        ("d,serial=x,,y", {"serial": "x,y"}),
    ],
)
def test_a_text_is_read(text, differs):
    assert fields(parse_drive(text)) == {**PLAIN, **differs}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a file name"),
        (",ro", "not a file name"),
        ("d,", "'' is none of ro, cache="),
        ("d,rw", "'rw' is none of ro, cache="),
        ("d,ro=1", "'ro=1' is none of"),
        ("d,cache", "'cache' is none of"),
        ("d,cache=fast", "none of writeback, none"),
        ("d,engine=steam", "none of auto, io_uring, threads"),
        ("d,cache=none,cache=none", "cache is given twice"),
        ("d,queues=0", "0 queues are not 1 to 16"),
        ("d,queues=17", "17 queues are not 1 to 16"),
        ("d,queues=-1", "not a number"),
        ("d,queues=two", "not a number"),
        ("d,queues=1000000000000", "not a number"),
        ("d,serial=" + 21 * "x", "no serial number"),
        ("d,serial=\xe4", "no serial number"),
        ("d,serial=\n", "no serial number"),
        ("d\0e", "NUL"),
        ("d" * 9000, "9000 characters"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        parse_drive(text)
    assert caught.value.path == "drive"
    assert len(str(caught.value)) < 200


@given(st.text(max_size=60))
def test_any_text_is_a_drive_or_a_config_error(text):
    try:
        config = parse_drive(text)
    except ConfigError:
        return
    assert config.path


@given(st.text(min_size=1, max_size=30).filter(lambda path: "\0" not in path))
def test_any_path_can_be_written(path):
    # A comma is doubled; an option's own comma may not follow one of the path's, so this one ends otherwise.
    assert parse_drive(path.replace(",", ",,")).path == path


def test_its_limits_are_those_of_device_and_backend():
    assert drive.MAX_QUEUES == block.MAX_QUEUES
    assert drive.ENGINES == disk.ENGINES
    assert drive.MAX_SERIAL_LENGTH == block.ID_SIZE
