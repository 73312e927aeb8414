"""The stub itself: it listens, in a thread of its own, and takes one client at a time."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading

from kvmpy.errors import ConfigError
from kvmpy.machine.gdb.address import GdbAddress
from kvmpy.machine.gdb.connection import PATIENCE, Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.machine import Machine


class GdbServer:
    """Lets gdb at `machine`: `target remote` with `address`, which says where it listens once it is made.

    `start` it after the machine.  The machine stops when a client comes, and runs on when it goes; one that is to wait
    for gdb is started paused.  Raises `ConfigError` where nobody can listen at `address`.  A unix socket is its
    owner's alone; a port on loopback is open to every user of this host.  Use it as a context manager, or call `close`.
    """

    def __init__(self, machine: Machine, address: GdbAddress) -> None:
        self._machine = machine
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            self._listener, self.address = _listen(address)
        except BaseException:
            os.close(self._wake)
            raise
        self._socket_id = _socket_id(address.path)
        self._lock = threading.Lock()
        self._closed = False
        self._released = False
        self._thread = threading.Thread(target=self._main, name="kvmpy-gdb", daemon=True)

    def __enter__(self) -> GdbServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Takes clients from now on; once."""
        self._thread.start()

    def close(self) -> None:
        """Sends the client away, lets the machine run on, and gives back all that was held.  Twice is fine.

        Where a script's hook holds the machine up, what there is goes when the hook ends.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._released:
                os.eventfd_write(self._wake, 1)
        path = self.address.path
        if path is not None and _socket_id(path) == self._socket_id:
            os.unlink(path)
        if self._thread.ident is None:
            self._release()
        else:
            self._thread.join(2 * PATIENCE)

    def _main(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._machine.fail(error)
        finally:
            self._release()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        while not self._closed:
            poll.poll()
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue  # Nobody, or nobody any more.
            with client:
                if client.family != socket.AF_UNIX:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                Connection(self._machine, client, self._listener, self._wake).serve()

    def _release(self) -> None:
        with self._lock:
            self._released = True
            self._listener.close()
            os.close(self._wake)


def _listen(address: GdbAddress) -> tuple[socket.socket, GdbAddress]:
    """A socket that listens at `address`, and where that is, with the port that was free."""
    path, host = address.path, address.host or ""
    family = socket.AF_UNIX if path is not None else socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if path is not None:
            _bind(listener, path)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, address.port))
            address = GdbAddress(host=host, port=listener.getsockname()[1])
        listener.setblocking(False)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise ConfigError("gdb", f"nobody can listen at {address}: {os.strerror(error.errno or 0)}") from error
    return listener, address


def _bind(listener: socket.socket, path: str) -> None:
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_left_over(path):
            raise
        os.unlink(path)
        listener.bind(path)
    # Nobody can connect before `listen`.
    os.chmod(path, 0o600)


def _is_left_over(path: str) -> bool:
    """Whether a socket is there that nobody listens at any more: its owner was killed."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False


def _socket_id(path: str | None) -> tuple[int, int] | None:
    try:
        status = os.lstat(path) if path is not None else None
    except OSError:
        return None
    return None if status is None else (status.st_dev, status.st_ino)
