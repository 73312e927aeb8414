"""Fuzzes the reader of initramfs archives: `python tests/fuzz/fuzz_cpio.py -runs=100000`."""

from __future__ import annotations

from kvmpy.testing.fuzz import fuzz, instrumented

with instrumented():
    from kvmpy.errors import ImageError
    from kvmpy.images import cpio

LIMIT = 1 << 20
ENTRIES = [
    cpio.file("init", b"content", 0o755, links=("sbin/init",)),
    cpio.symlink("bin/sh", "busybox"),
    cpio.char_device("dev/console", 5, 1),
]
ARCHIVE = cpio.write(ENTRIES)
CORPUS = [
    ARCHIVE,
    cpio.write(ENTRIES, compress=True),
    ARCHIVE + bytes(512) + cpio.write([cpio.file("second", b"")]),
    ARCHIVE.replace(b"070701", b"070702"),
]


def one_input(data: bytes) -> None:
    """No archive raises anything but `ImageError`, holds more than it may, or changes on its second way through."""
    try:
        entries = cpio.read(data, limit=LIMIT, entries=100)
    except ImageError:
        return
    assert sum(len(entry.data) for entry in entries) <= LIMIT
    try:
        again = cpio.read(cpio.write(entries, mtime=None))
    except ImageError:
        # The reader lists what the writer would not write, such as absolute names.
        return
    found = {entry.name: entry for entry in again}
    for entry in entries:
        names = sorted((entry.name, *entry.links))
        assert found[names[0]].data == entry.data
        assert found[names[0]].mode == entry.mode


if __name__ == "__main__":
    fuzz(one_input, CORPUS)
