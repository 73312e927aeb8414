"""The host's side of a disk: a raw image or a block device, opened with care, locked, and carried out by an engine.

Requests are queued by `read`, `write`, `flush`, `discard` and `write_zeroes`, go out together with `submit`, and come
back by `completed` when `event_fd` is readable.  What `flush` covers is on stable storage once it is back.
"""

from __future__ import annotations

import errno
import os
import stat

from kvmpy.backends.disk_engine import RingEngine, ThreadEngine
from kvmpy.backends.disk_request import DISCARD, PUNCH, READ, SYNC, WRITE, ZERO, ZERO_RANGE, Request
from kvmpy.errors import ConfigError, HostError
from kvmpy.host.files import direct_alignment, lock, logical_block_size
from kvmpy.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpy.backends.disk_engine import Engine

SECTOR_SIZE = 512

AUTO = "auto"
IO_URING = "io_uring"
THREADS = "threads"
ENGINES = (AUTO, IO_URING, THREADS)

# Where a file system does not say what O_DIRECT wants: the largest that is common.
UNKNOWN_ALIGNMENT = 4096


class Disk:
    """The raw image or block device at `path`.

    `read_only` opens it so, and lets other readers in; a writable one is ours alone.  `direct` goes around the host's
    page cache.  `engine` is one of `ENGINES`; `auto` takes io_uring where the kernel has it, and else threads.

    `size` is in bytes; `block_size` is the smallest piece that may be read and written, 512 unless `direct` needs
    more.  Raises a `ConfigError` at `drive` for what is no disk or is in use, and `HostError` for an engine that is
    not to be had.  One thread at a time uses it.  Use it as a context manager, or call `close`.
    """

    __slots__ = ("_batch", "_engine", "_fd", "block_size", "event_fd", "path", "read_only", "size")

    def __init__(self, path: str, *, read_only: bool = False, direct: bool = False, engine: str = AUTO) -> None:
        if engine not in ENGINES:
            raise ConfigError("drive", f"{engine!r:.100} is none of {', '.join(ENGINES)}")
        self.path = path
        self.read_only = read_only
        self._batch: list[Request] = []
        self._fd = _open(path, read_only, direct)
        try:
            _lock(self._fd, path, read_only)
            self.block_size = _alignment(self._fd) if direct else SECTOR_SIZE
            self.size = self._measure()
            self._engine = _start(self._fd, engine, self.block_size if direct else 1)
        except BaseException:
            os.close(self._fd)
            raise
        self.event_fd = self._engine.event_fd

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def engine(self) -> str:
        """The engine that is at work, `io_uring` or `threads`."""
        return self._engine.name

    def read(self, token: object, offset: int, buffers: Sequence[memoryview], length: int) -> None:
        """Queues a read of `length` bytes at `offset` into `buffers`, which are as long together."""
        self._batch.append(Request(token, READ, offset, length, buffers))

    def write(self, token: object, offset: int, buffers: Sequence[memoryview], length: int) -> None:
        """Queues a write of `buffers`, `length` bytes together, at `offset`."""
        self._batch.append(Request(token, WRITE, offset, length, buffers))

    def flush(self, token: object) -> None:
        """Queues an fdatasync: it covers every write that was back before."""
        self._batch.append(Request(token, SYNC))

    def discard(self, token: object, offset: int, length: int) -> None:
        """Queues a hole of `length` bytes, more than 0, at `offset`: the host gets its space back."""
        self._batch.append(Request(token, DISCARD, offset, length, mode=PUNCH))

    def write_zeroes(self, token: object, offset: int, length: int, *, unmap: bool) -> None:
        """Queues zeroes, `length` bytes and more than 0, at `offset`; `unmap` may give the host its space back."""
        self._batch.append(Request(token, ZERO, offset, length, mode=PUNCH if unmap else ZERO_RANGE))

    def submit(self) -> None:
        """Begins all that was queued."""
        batch, self._batch = self._batch, []
        if batch:
            self._engine.submit(batch)

    def completed(self) -> list[tuple[object, int]]:
        """The token of each request that was completed since the last call, with 0 or its errno; never waits."""
        return [(request.token, request.error) for request in self._engine.completed()]

    def wait(self) -> None:
        """Waits until all that was begun is complete; `completed` then gives all of it."""
        self._engine.wait()

    def resize(self, size: int | None = None) -> int:
        """Makes an image file `size` bytes long, never shorter than it is, or looks how long it became; the new size.

        Raises `ConfigError` for a size that it cannot have, and `HostError` where the host refuses.
        """
        if size is not None:
            if self.read_only or not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise ConfigError("drive", f"{self.path!r:.200} is no writable image file, which could be made longer")
            _check_size(self.path, size, self.block_size)
            if size < self.size:
                raise ConfigError("drive", f"{self.path!r:.200} has {self.size} bytes and cannot become shorter")
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                raise HostError("ftruncate", error.errno or 0) from error
        self.size = self._measure()
        return self.size

    def close(self) -> None:
        """Waits for all that was begun, lets go of the file and its lock; twice is fine.

        What was not flushed is the host's page cache's to write, as after any program that ends.
        """
        if self._fd >= 0:
            self._engine.close()
            os.close(self._fd)
            self._fd = -1

    def _measure(self) -> int:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        _check_size(self.path, size, self.block_size)
        return size


def _open(path: str, read_only: bool, direct: bool) -> int:
    try:
        # Before it is opened: a pipe would wait for its other end, and a tape would rewind.
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ConfigError("drive", f"{path!r:.200} is neither a regular file nor a block device")
        flags = os.O_RDONLY if read_only else os.O_RDWR
        if stat.S_ISBLK(mode) and not read_only:
            flags |= os.O_EXCL  # The kernel refuses a device that is mounted.
        return os.open(path, flags | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
    except OSError as error:
        if direct and error.errno == errno.EINVAL:
            raise ConfigError("drive", f"{path!r:.200}: its file system has no direct access; use its cache") from None
        advice = "; open it read-only" if not read_only and error.errno in (errno.EACCES, errno.EROFS) else ""
        raise ConfigError("drive", f"{path!r:.200}: {error.strerror}{advice}") from None
    except ValueError:
        raise ConfigError("drive", f"{path!r:.200} is not a file name") from None


def _lock(fd: int, path: str, read_only: bool) -> None:
    try:
        if lock(fd, exclusive=not read_only):
            return
    except OSError as error:
        raise ConfigError("drive", f"{path!r:.200} cannot be locked: {error.strerror}") from None
    if read_only:
        raise ConfigError("drive", f"{path!r:.200} is being written by another machine; end it first")
    raise ConfigError("drive", f"{path!r:.200} is in use by another machine; end it, or open it read-only in both")


def _alignment(fd: int) -> int:
    try:
        return max(SECTOR_SIZE, logical_block_size(fd))
    except OSError:
        return max(SECTOR_SIZE, direct_alignment(fd) or UNKNOWN_ALIGNMENT)


def _check_size(path: str, size: int, block_size: int) -> None:
    if size <= 0 or size % block_size:
        raise ConfigError(
            "drive", f"{path!r:.200} has {size} bytes, which is not a positive multiple of {format_size(block_size)}"
        )


def _start(fd: int, engine: str, alignment: int) -> Engine:
    if engine != THREADS:
        try:
            return RingEngine(fd, alignment)
        except HostError:
            if engine == IO_URING:
                raise
    return ThreadEngine(fd, alignment)
