"""The newc cpio format, which the kernel unpacks as its initramfs: a writer and a bounded reader.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kvmpy.errors import ImageError
from kvmpy.units import MIB

NEWC_MAGIC = b"070701"
NEWC_CRC_MAGIC = b"070702"
HEADER_SIZE = 110
TRAILER = "TRAILER!!!"
GZIP_MAGIC = b"\x1f\x8b"

PATH_MAX = 4096
SIZE_MAX = 0xFFFFFFFF

DEFAULT_LIMIT = 1024 * MIB
DEFAULT_ENTRIES = 1_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive.

    `mode` holds the type and the permissions (as `st_mode`), `data` a file's content or a symlink's target,
    `device` the (major, minor) of a device node, `links` the further names of a file with hard links.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)
    links: tuple[str, ...] = ()
    uid: int = 0
    gid: int = 0
    mtime: int = 0


def directory(name: str, permissions: int = 0o755) -> Entry:
    """A folder."""
    return Entry(name, stat.S_IFDIR | permissions)


def file(name: str, data: bytes, permissions: int = 0o644, *, links: tuple[str, ...] = ()) -> Entry:
    """A regular file, and the other names that it has."""
    return Entry(name, stat.S_IFREG | permissions, data, links=links)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link to `target`, which is stored as it is."""
    return Entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))


def char_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def block_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A block device node."""
    return Entry(name, stat.S_IFBLK | permissions, device=(major, minor))


def from_folder(folder: str | os.PathLike[str], *, keep_owner: bool = False) -> list[Entry]:
    """Everything below `folder`, symlinks kept as links, hard links found, owned by root unless `keep_owner`.

    Raises `ImageError` for a socket, or for what cannot be read.
    """
    root = os.fspath(folder)
    entries: list[Entry] = []
    linked: dict[tuple[int, int], int] = {}
    pending = [""]
    try:
        while pending:
            below = pending.pop()
            for found in sorted(os.scandir(os.path.join(root, below) if below else root), key=lambda entry: entry.name):
                name = f"{below}/{found.name}" if below else found.name
                status = found.stat(follow_symlinks=False)
                key = (status.st_dev, status.st_ino)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(name)
                elif key in linked:
                    first = entries[linked[key]]
                    entries[linked[key]] = replace(first, links=(*first.links, name))
                    continue
                elif status.st_nlink > 1:
                    linked[key] = len(entries)
                entries.append(_from_status(name, found.path, status, keep_owner))
    except OSError as error:
        raise ImageError(f"{error.filename or root}: {error.strerror}") from error
    return entries


def _from_status(name: str, path: str, status: os.stat_result, keep_owner: bool) -> Entry:
    data = b""
    device = (0, 0)
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as content:
            data = content.read(SIZE_MAX + 1)
    elif stat.S_ISLNK(status.st_mode):
        data = os.fsencode(os.readlink(path))
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    elif stat.S_ISSOCK(status.st_mode):
        raise ImageError(f"{path}: a socket cannot be put in an initramfs")
    uid, gid = (status.st_uid, status.st_gid) if keep_owner else (0, 0)
    return Entry(name, status.st_mode, data, device, uid=uid, gid=gid, mtime=int(status.st_mtime))


def write(entries: Iterable[Entry], *, mtime: int | None = 0, compress: bool = False) -> bytes:
    """The archive of `entries`, the same bytes for the same entries in any order.

    Parent folders that are not named are added, and folders come before what is in them.  `mtime` (seconds since
    1970) is every file's; None keeps each entry's own.  `compress` packs with gzip.  Raises `ImageError` for names
    that are absolute, leave the root, repeat or are too long, and for files of 4 GiB and more.
    """
    ordered = _ordered(entries)
    parts: list[bytes] = []
    for number, entry in enumerate(ordered, start=1):
        if mtime is not None:
            entry = replace(entry, mtime=mtime)
        names = sorted((entry.name, *entry.links))
        for index, name in enumerate(names, start=1):
            # A file's content goes with the last of its names, as every unpacker expects.
            data = entry.data if index == len(names) else b""
            parts += _record(name, entry, number, len(names), data)
    parts += _record(TRAILER, Entry(TRAILER, 0), 0, 1, b"")
    archive = b"".join(parts)
    return gzip.compress(archive, 6, mtime=0) if compress else archive


def _ordered(entries: Iterable[Entry]) -> list[Entry]:
    folders: dict[str, Entry] = {}
    others: dict[str, Entry] = {}
    names: set[str] = set()
    for entry in entries:
        _check(entry)
        for name in (entry.name, *entry.links):
            _check_name(name)
            if name in names:
                raise ImageError(f"initramfs: {name!r} is there twice")
            names.add(name)
        (folders if stat.S_ISDIR(entry.mode) else others)[min((entry.name, *entry.links))] = entry
    for name in sorted(names):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent not in folders:
                if parent in names:
                    raise ImageError(f"initramfs: {name!r} lies below {parent!r}, which is no folder")
                folders[parent] = directory(parent)
    return [group[name] for group in (folders, others) for name in sorted(group, key=os.fsencode)]


def _check(entry: Entry) -> None:
    if len(entry.data) > SIZE_MAX:
        raise ImageError(f"initramfs: {entry.name!r} is 4 GiB or larger, which the cpio format cannot hold")
    if not 0 < entry.mode <= 0xFFFF or not stat.S_IFMT(entry.mode):
        raise ImageError(f"initramfs: {entry.name!r} has mode {entry.mode:#o}, which names no file type")
    if entry.links and not stat.S_ISREG(entry.mode):
        raise ImageError(f"initramfs: {entry.name!r} has further names, which only a regular file can have")
    if stat.S_ISLNK(entry.mode) and not 0 < len(entry.data) < PATH_MAX:
        raise ImageError(f"initramfs: the target of {entry.name!r} must be 1 to {PATH_MAX - 1} bytes long")
    if entry.data and not (stat.S_ISREG(entry.mode) or stat.S_ISLNK(entry.mode)):
        raise ImageError(f"initramfs: {entry.name!r} has data, which its file type cannot hold")
    for number in (*entry.device, entry.uid, entry.gid):
        if not 0 <= number <= SIZE_MAX:
            raise ImageError(f"initramfs: {entry.name!r} has an owner or device number outside of 32 bits")


def _check_name(name: str) -> None:
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        raise ImageError(f"initramfs: {name!r} is not a file name") from None
    bad_part = any(part in ("", ".", "..") for part in name.split("/"))
    if bad_part or b"\0" in encoded or len(encoded) >= PATH_MAX or name == TRAILER:
        raise ImageError(f"initramfs: {name[:80]!r} is not a name below the root folder, such as 'etc/passwd'")


def _record(name: str, entry: Entry, number: int, links: int, data: bytes) -> Iterator[bytes]:
    encoded = os.fsencode(name) + b"\0"
    mtime = min(max(entry.mtime, 0), SIZE_MAX)
    fields = (number, entry.mode, entry.uid, entry.gid, links, mtime, len(data), 0, 0, *entry.device, len(encoded), 0)
    yield NEWC_MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
    yield bytes(-(HEADER_SIZE + len(encoded)) % 4)
    yield data
    yield bytes(-len(data) % 4)


def read(archive: bytes, *, limit: int = DEFAULT_LIMIT, entries: int = DEFAULT_ENTRIES) -> list[Entry]:
    """The entries of an archive, plain or packed with gzip, hard links gathered into one entry.

    Several archives may follow one another, with zero bytes between, as the kernel takes them.  Raises
    `ImageError` when it is malformed, unpacks to more than `limit` bytes, or holds more than `entries` files.
    """
    if archive[:2] == GZIP_MAGIC:
        archive = _gunzip(archive, limit)
    elif len(archive) > limit:
        raise ImageError(f"initramfs: {len(archive)} bytes, more than the {limit} allowed")
    result: list[Entry] = []
    linked: dict[tuple[int, int, int], int] = {}
    offset = 0
    ended = False
    while offset < len(archive):
        key, links, entry, offset = _parse(archive, offset)
        ended = entry is None
        if entry is None:
            linked.clear()
            offset = _skip_zeros(archive, offset)
            continue
        if len(result) >= entries:
            raise ImageError(f"initramfs: more than {entries} files")
        if links > 1 and stat.S_ISREG(entry.mode) and key in linked:
            first = result[linked[key]]
            result[linked[key]] = replace(first, data=entry.data or first.data, links=(*first.links, entry.name))
            continue
        if links > 1 and stat.S_ISREG(entry.mode):
            linked[key] = len(result)
        result.append(entry)
    if not ended:
        raise ImageError("initramfs: cut off, there is no TRAILER!!! at its end")
    return result


def _parse(archive: bytes, start: int) -> tuple[tuple[int, int, int], int, Entry | None, int]:
    """The record at `start`: its (device, inode) key, link count, entry (None for the trailer), and the next offset."""
    header = archive[start : start + HEADER_SIZE]
    magic = header[:6]
    if magic not in (NEWC_MAGIC, NEWC_CRC_MAGIC):
        raise ImageError(f"initramfs: no newc cpio header at byte {start}")
    digits = header[6:]
    if len(header) != HEADER_SIZE or digits.strip(b"0123456789abcdefABCDEF"):
        raise ImageError(f"initramfs: the header at byte {start} is cut off or not in hexadecimal")
    fields = [int(digits[at : at + 8], 16) for at in range(0, 104, 8)]
    number, mode, uid, gid, links, mtime, size, dev_major, dev_minor, major, minor, name_size, checksum = fields
    if not 1 < name_size <= PATH_MAX:
        raise ImageError(f"initramfs: the name at byte {start} is {name_size} bytes long, not 2 to {PATH_MAX}")
    name_at = start + HEADER_SIZE
    data_at = _align(name_at + name_size)
    end = data_at + size
    if end > len(archive):
        raise ImageError(f"initramfs: the file at byte {start} goes on past the end of the archive")
    name = archive[name_at : name_at + name_size]
    if name.find(b"\0") != name_size - 1:
        raise ImageError(f"initramfs: the name at byte {start} does not end with its one zero byte")
    data = archive[data_at:end]
    if magic == NEWC_CRC_MAGIC and sum(data) & SIZE_MAX != checksum:
        raise ImageError(f"initramfs: the checksum of the file at byte {start} is wrong")
    text = os.fsdecode(name[:-1])
    key = (dev_major, dev_minor, number)
    if text == TRAILER:
        return key, links, None, _align(end)
    entry = Entry(text, mode, data, (major, minor), uid=uid, gid=gid, mtime=mtime)
    return key, links, entry, _align(end)


def _align(offset: int) -> int:
    return (offset + 3) & ~3


def _skip_zeros(archive: bytes, offset: int) -> int:
    """The offset of the next byte that is not zero; a run is skipped without a copy of the rest."""
    step = 1 << 16
    while offset < len(archive):
        rest = archive[offset : offset + step].lstrip(b"\0")
        if rest:
            return min(offset + step, len(archive)) - len(rest)
        offset += step
    return len(archive)


def _gunzip(archive: bytes, limit: int) -> bytes:
    try:
        unpacker = zlib.decompressobj(wbits=31)
        data = unpacker.decompress(archive, limit + 1)
    except zlib.error as error:
        raise ImageError(f"initramfs: damaged gzip data ({error})") from error
    if len(data) > limit:
        raise ImageError(f"initramfs: unpacks to more than the {limit} bytes allowed")
    if not unpacker.eof:
        raise ImageError("initramfs: the gzip data is cut off")
    return data
