from __future__ import annotations

import gzip
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import ImageError
from kvmpy.images import cpio
from kvmpy.images.cpio import Entry

SAMPLE = [
    cpio.directory("etc"),
    cpio.file("etc/motd", b"hello", 0o600),
    cpio.symlink("bin/sh", "busybox"),
    cpio.char_device("dev/console", 5, 1),
    cpio.block_device("dev/vda", 254, 0),
    cpio.file("init", b"\x7fELF" + bytes(1000), 0o755, links=("linuxrc", "sbin/init")),
]

names = st.lists(st.text("abc.-é ", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)
files = st.builds(cpio.file, names, st.binary(max_size=20), st.integers(0, 0o7777))
links = st.builds(cpio.symlink, names, st.text("abc/.", min_size=1, max_size=8))
devices = st.builds(cpio.char_device, names, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
anything = st.lists(st.one_of(files, links, devices, st.builds(cpio.directory, names)), max_size=8)


def by_name(entries: list[Entry]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


def test_reads_back_what_was_written() -> None:
    found = by_name(cpio.read(cpio.write(SAMPLE)))
    for entry in SAMPLE:
        assert found[entry.name] == entry


@given(anything)
def test_reads_back_whatever_can_be_written(entries: list[Entry]) -> None:
    try:
        archive = cpio.write(entries)
    except ImageError:
        return
    found = by_name(cpio.read(archive))
    assert {entry.name: entry for entry in entries}.items() <= found.items()
    assert all(stat.S_ISDIR(found[name].mode) for name in found.keys() - by_name(entries).keys())


def test_one_file_is_the_bytes_of_the_format() -> None:
    fields = (1, 0o100644, 0, 0, 1, 0, 3, 0, 0, 0, 0, 2, 0)
    record = b"070701" + b"".join(b"%08X" % field for field in fields) + b"a\0" + b"xyz\0"
    fields = (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0)
    trailer = b"070701" + b"".join(b"%08X" % field for field in fields) + b"TRAILER!!!\0" + bytes(3)
    assert cpio.write([cpio.file("a", b"xyz")]) == record + trailer


def test_each_header_and_each_content_starts_at_a_multiple_of_four() -> None:
    archive = cpio.write([cpio.file("n" * length, b"d" * length) for length in range(1, 9)])
    at = archive.find(b"070701")
    while at >= 0:
        assert at % 4 == 0
        at = archive.find(b"070701", at + 1)
    assert len(archive) % 4 == 0


def test_order_of_the_entries_does_not_matter() -> None:
    assert cpio.write(SAMPLE) == cpio.write(SAMPLE[::-1])


def test_folders_come_before_everything_else() -> None:
    kinds = [stat.S_ISDIR(entry.mode) for entry in cpio.read(cpio.write(SAMPLE))]
    assert kinds == sorted(kinds, reverse=True)


def test_missing_parents_are_made() -> None:
    found = by_name(cpio.read(cpio.write([cpio.file("a/b/c", b"")])))
    assert found["a"].mode == found["a/b"].mode == stat.S_IFDIR | 0o755


def test_hard_links_share_one_number_and_one_content() -> None:
    archive = cpio.write([cpio.file("b", b"once", links=("a", "c"))])
    assert archive.count(b"once") == 1
    assert cpio.read(archive) == [cpio.file("a", b"once", links=("b", "c"))]


def test_packs_with_gzip_the_same_each_time() -> None:
    packed = cpio.write(SAMPLE, compress=True)
    assert packed == cpio.write(SAMPLE, compress=True)
    assert gzip.decompress(packed) == cpio.write(SAMPLE)
    assert cpio.read(packed) == cpio.read(cpio.write(SAMPLE))


def test_keeps_times_only_when_asked() -> None:
    entry = Entry("a", stat.S_IFREG | 0o644, mtime=1234)
    assert cpio.read(cpio.write([entry]))[0].mtime == 0
    assert cpio.read(cpio.write([entry], mtime=99))[0].mtime == 99
    assert cpio.read(cpio.write([entry], mtime=None))[0].mtime == 1234


@pytest.mark.parametrize(
    "name", ["", "/etc", "a//b", "a/", "./a", "../a", "a/../b", "a\0b", "n" * 4096, "TRAILER!!!", "\ud800"]
)
def test_refuses_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ImageError, match="name"):
        cpio.write([cpio.file(name, b"")])


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([cpio.file("a", b""), cpio.symlink("a", "b")], "twice"),
        ([cpio.file("a", b"", links=("a",))], "twice"),
        ([cpio.file("a", b""), cpio.file("a/b", b"")], "no folder"),
        ([Entry("a", 0o644)], "no file type"),
        ([Entry("a", stat.S_IFDIR | 0o755, b"data")], "data"),
        ([Entry("a", stat.S_IFDIR | 0o755, links=("b",))], "further names"),
        ([cpio.symlink("a", "")], "target"),
        ([cpio.symlink("a", "t" * 4096)], "target"),
        ([cpio.char_device("a", 1 << 32, 0)], "32 bits"),
        ([cpio.char_device("a", 0, -1)], "32 bits"),
    ],
)
def test_refuses_what_the_format_cannot_hold(entries: list[Entry], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        cpio.write(entries)


def test_takes_a_folder_as_it_is(tmp_path: os.PathLike[str]) -> None:
    root = os.fspath(tmp_path)
    os.mkdir(f"{root}/sub")
    with open(f"{root}/sub/file", "w") as text:
        text.write("content")
    os.chmod(f"{root}/sub/file", 0o640)
    os.link(f"{root}/sub/file", f"{root}/again")
    os.symlink("/nowhere", f"{root}/link")
    os.mkfifo(f"{root}/pipe", 0o600)
    found = by_name(cpio.read(cpio.write(cpio.from_folder(tmp_path))))
    assert set(found) == {"sub", "again", "link", "pipe"}
    assert (found["again"].mode, found["again"].data) == (stat.S_IFREG | 0o640, b"content")
    assert found["again"].links == ("sub/file",)
    assert found["link"].data == b"/nowhere"
    assert found["pipe"].mode == stat.S_IFIFO | 0o600
    assert {(entry.uid, entry.gid) for entry in found.values()} == {(0, 0)}


def test_says_which_folder_is_not_there(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(ImageError, match="missing: No such file"):
        cpio.from_folder(os.path.join(tmp_path, "missing"))


def test_reads_archives_one_after_the_other() -> None:
    first, second = cpio.write([cpio.file("a", b"1")]), cpio.write([cpio.file("b", b"2")])
    assert [entry.name for entry in cpio.read(first + bytes(512) + second + bytes(100_000))] == ["a", "b"]


def test_checks_the_sums_of_the_crc_format() -> None:
    plain = cpio.write([cpio.file("a", b"\x01\x02")])
    good = b"070702" + plain[6:102] + b"%08X" % 3 + plain[110:]
    assert cpio.read(good)[0].data == b"\x01\x02"
    with pytest.raises(ImageError, match="checksum"):
        cpio.read(b"070702" + plain[6:])


def test_an_archive_that_is_cut_off_anywhere_is_refused() -> None:
    archive = cpio.write(SAMPLE)
    end = archive.index(b"TRAILER!!!") + 11
    for length in range(end):
        with pytest.raises(ImageError):
            cpio.read(archive[:length])


def test_a_gzip_archive_that_is_cut_off_is_refused() -> None:
    packed = cpio.write(SAMPLE, compress=True)
    for length in range(len(packed)):
        with pytest.raises(ImageError):
            cpio.read(packed[:length])


def test_a_packed_archive_unpacks_to_the_limit_and_no_further() -> None:
    packed = gzip.compress(bytes(10_000_000))
    with pytest.raises(ImageError, match="more than the 1000 bytes"):
        cpio.read(packed, limit=1000)


def test_plain_bytes_over_the_limit_are_refused() -> None:
    with pytest.raises(ImageError, match="more than the 100"):
        cpio.read(cpio.write(SAMPLE), limit=100)


def test_more_files_than_allowed_are_refused() -> None:
    with pytest.raises(ImageError, match="more than 2 files"):
        cpio.read(cpio.write(SAMPLE), entries=2)


def test_a_size_past_the_end_is_refused() -> None:
    archive = bytearray(cpio.write([cpio.file("a", b"1")]))
    archive[54:62] = b"FFFFFFFF"
    with pytest.raises(ImageError, match="past the end"):
        cpio.read(bytes(archive))


@pytest.mark.parametrize("size", [b"00000000", b"00000001", b"00001001", b"FFFFFFFF"])
def test_a_name_size_out_of_bounds_is_refused(size: bytes) -> None:
    archive = bytearray(cpio.write([cpio.file("a", b"1")]))
    archive[94:102] = size
    with pytest.raises(ImageError, match="name"):
        cpio.read(bytes(archive))


@given(st.binary(max_size=400))
def test_any_bytes_end_in_entries_or_one_error(data: bytes) -> None:
    try:
        cpio.read(data)
    except ImageError:
        pass


@given(st.integers(0, len(cpio.write(SAMPLE)) - 1), st.integers(0, 255))
def test_any_changed_byte_ends_in_entries_or_one_error(at: int, value: int) -> None:
    archive = bytearray(cpio.write(SAMPLE))
    archive[at] = value
    try:
        found = cpio.read(bytes(archive))
    except ImageError:
        return
    assert sum(len(entry.data) for entry in found) <= len(archive)
