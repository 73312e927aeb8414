"""Guest RAM: which guest-physical addresses are memory, what backs them, and the only way in.

A guest address is untrusted, always: every access names an address and a length, and one that does not lie
wholly inside RAM raises `GuestMemoryError`.  Every write by the host goes through `write`, `fill` or
`writable`, which mark pages in `dirty`: KVM's own log sees only what the guest writes.

`dirty` holds one byte a page and not one bit, because a plain store needs no lock between threads.
"""

from __future__ import annotations

import mmap
import os

from kvmpy.errors import ConfigError, GuestMemoryError, HostError
from kvmpy.units import GIB, MIB, PAGE_SHIFT, PAGE_SIZE, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Between these two addresses an x86 PC has no RAM but devices: APICs, firmware, PCI (the "hole below 4 GiB").
HOLE_START = 3 * GIB
HOLE_END = 4 * GIB

HUGE_PAGE_SIZE = 2 * MIB

ANONYMOUS = "anonymous"
MEMFD = "memfd"
HUGETLB = "hugetlb"
FILE = "file"
BACKINGS = (ANONYMOUS, MEMFD, HUGETLB, FILE)


class MemoryRegion:
    """One run of guest RAM that is contiguous in the guest and on the host.

    `start` and `size` in bytes, multiples of the page size; `buffer` is the mapping; `fd` is the open file
    behind it and `fd_offset` where it starts there, or None and 0 for anonymous memory; `dirty` has a byte a page.
    """

    __slots__ = ("buffer", "dirty", "end", "fd", "fd_offset", "size", "start", "view")

    def __init__(self, start: int, buffer: mmap.mmap, *, fd: int | None = None, fd_offset: int = 0) -> None:
        self.start = start
        self.size = len(buffer)
        self.end = start + self.size
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.fd = fd
        self.fd_offset = fd_offset
        self.dirty = bytearray(self.size >> PAGE_SHIFT)

    def __repr__(self) -> str:
        return f"MemoryRegion({self.start:#x}..{self.end:#x})"


class GuestMemory:
    """All RAM of one machine, `size` bytes of it, from address 0 up and around the hole below 4 GiB.

    `backing` is one of `BACKINGS`: anonymous memory with transparent huge pages; a memfd, when another process
    or a fork needs an fd; hugetlb pages; or the file at `path`, which is made `size` bytes long and shared.
    Raises `ConfigError` for a size that is no multiple of a page (of 2 MiB with hugetlb) and `HostError` when
    the host has not enough memory.  Use it as a context manager, or call `close`.
    """

    def __init__(self, size: int, *, backing: str = ANONYMOUS, path: str | None = None) -> None:
        page = HUGE_PAGE_SIZE if backing == HUGETLB else PAGE_SIZE
        if size <= 0 or size % page:
            raise ConfigError("memory", f"{size} bytes is not a positive multiple of {format_size(page)}")
        if backing not in BACKINGS:
            raise ConfigError("memory", f"{backing!r} is no backing; choose one of {', '.join(BACKINGS)}")
        self.size = size
        self.backing = backing
        self._fd = _open_backing(size, backing, path)
        self._closed = False
        regions = []
        try:
            for start, offset, length in _ranges(size):
                regions.append(MemoryRegion(start, _map(length, self._fd, offset), fd=self._fd, fd_offset=offset))
        except OSError as error:
            self.regions: tuple[MemoryRegion, ...] = tuple(regions)
            self.close()
            raise HostError("mmap", error.errno or 0, f"ask for less memory than {format_size(size)}") from error
        self.regions = tuple(regions)

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory back.  Views that are still held stay valid and keep their region; twice is fine."""
        if self._closed:
            return
        self._closed = True
        for region in self.regions:
            region.view.release()
            try:
                region.buffer.close()
            except BufferError:
                pass  # Somebody holds a view: the mapping goes when the last of them does.
        if self._fd is not None:
            os.close(self._fd)

    @property
    def end(self) -> int:
        """The first address above all RAM."""
        return self.regions[-1].end

    def region_of(self, address: int, length: int) -> MemoryRegion:
        """The region that holds `length` bytes at `address`, or `GuestMemoryError`."""
        for region in self.regions:
            if region.start <= address and length >= 0 and address + length <= region.end:
                return region
        raise GuestMemoryError(address, length)

    def view(self, address: int, length: int) -> memoryview:
        """A read-only view of `length` bytes at `address`; it shows what the guest writes later."""
        region = self.region_of(address, length)
        offset = address - region.start
        return region.view[offset : offset + length].toreadonly()

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes at `address`."""
        region = self.region_of(address, length)
        offset = address - region.start
        return bytes(region.view[offset : offset + length])

    def writable(self, address: int, length: int) -> memoryview:
        """A view of `length` bytes at `address` to write into, its pages marked dirty now."""
        region = self.region_of(address, length)
        offset = address - region.start
        if length:
            first, last = offset >> PAGE_SHIFT, (offset + length - 1) >> PAGE_SHIFT
            region.dirty[first : last + 1] = b"\1" * (last + 1 - first)
        return region.view[offset : offset + length]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copies `data` to `address` and marks its pages dirty."""
        self.writable(address, len(data))[:] = data

    def fill(self, address: int, length: int, byte: int = 0) -> None:
        """Sets `length` bytes at `address` to `byte`."""
        view = self.writable(address, length)
        chunk = bytes([byte]) * min(length, MIB)
        for start in range(0, length, MIB):
            view[start : start + MIB] = chunk[: length - start]

    def dirty_pages(self) -> Iterator[int]:
        """The address of each page that the host wrote since `clear_dirty`, in rising order."""
        for region in self.regions:
            page = region.dirty.find(1)
            while page >= 0:
                yield region.start + (page << PAGE_SHIFT)
                page = region.dirty.find(1, page + 1)

    def clear_dirty(self) -> None:
        """Forgets which pages the host wrote."""
        for region in self.regions:
            region.dirty[:] = bytes(len(region.dirty))


def _ranges(size: int) -> Iterator[tuple[int, int, int]]:
    """(guest address, offset into the backing, length) of each region of a machine with `size` bytes."""
    below = min(size, HOLE_START)
    yield 0, 0, below
    if size > below:
        yield HOLE_END, below, size - below


def _open_backing(size: int, backing: str, path: str | None) -> int | None:
    if backing == ANONYMOUS:
        return None
    try:
        if backing == FILE:
            if path is None:
                raise ConfigError("memory", "a file backing needs the file's path")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        else:
            flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB if backing == HUGETLB else os.MFD_ALLOW_SEALING)
            fd = os.memfd_create("kvmpy-guest-memory", flags)
    except OSError as error:
        raise HostError("memfd_create" if path is None else f"open {path}", error.errno or 0) from error
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise HostError("ftruncate", error.errno or 0) from error
    return fd


def _map(length: int, fd: int | None, offset: int) -> mmap.mmap:
    if fd is not None:
        return mmap.mmap(fd, length, flags=mmap.MAP_SHARED | _MAP_NORESERVE, offset=offset)
    buffer = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    # Nothing to gain below one huge page, and tiny guests start often.
    if length >= HUGE_PAGE_SIZE:
        try:
            buffer.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # A host without transparent huge pages: slower, and no less right.
    return buffer


_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
