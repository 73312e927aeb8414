"""One client of the stub: acknowledgements, one command after the other, and a guest that runs meanwhile.

All of it happens in the stub's thread, in `poll`, but for the debugger's calls that wait for the guest: each of them
has a thread of its own, so that the interrupt byte and the end of the connection are heard.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from contextlib import ExitStack

from kvmpy.errors import KvmpyError, StateError
from kvmpy.machine.gdb.packets import (
    ACK,
    DAMAGED,
    INTERRUPT,
    MAX_PACKET,
    NAK,
    OVERSIZED,
    PacketReader,
    encode,
)
from kvmpy.machine.gdb.packets import REFUSED as RESEND
from kvmpy.machine.gdb.session import INVALID, REFUSED, Leave, Run, Session
from kvmpy.machine.outcome import USER, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from kvmpy.machine.machine import Machine
    from kvmpy.machine.script.debugger import Debugger, Stop

# Seconds that a client may take to accept an answer.
PATIENCE = 2.0

# Bytes that a client may send ahead while the guest runs.
MAX_AHEAD = 4 * MAX_PACKET

# An interrupt may come before the debugger has let the guest run; so it comes again, after so many milliseconds.
_AGAIN = 50


class Connection:
    """Serves `client` until it leaves, or until `wake`, an eventfd, says that the stub is to close.

    `listener` is where others knock meanwhile: they are turned away.
    """

    def __init__(self, machine: Machine, client: socket.socket, listener: socket.socket, wake: int) -> None:
        self._machine = machine
        self._client = client
        self._listener = listener
        self._wake = wake
        self._reader = PacketReader()
        self._pending: deque[bytes | str] = deque()
        self._ahead = 0
        self._gone = False
        self._is_done = False
        self._sent = b""

    def serve(self) -> None:
        """Takes the machine over, and lets it run on when the client is gone, however it went."""
        self._done = os.eventfd(0, os.EFD_CLOEXEC)
        with ExitStack() as stack:
            stack.callback(os.close, self._done)
            try:
                debugger = self._machine.debugger()
            except StateError:
                return  # A script debugs it already.
            stack.callback(self._machine.resume)
            stack.callback(debugger.close)
            self._poll = select.poll()
            for fd in (self._client, self._listener, self._wake, self._done):
                self._poll.register(fd, select.POLLIN)
            self._client.settimeout(PATIENCE)
            self._talk(Session(debugger), debugger)

    def _talk(self, session: Session, debugger: Debugger) -> None:
        while True:
            while not self._pending:
                if self._gone:
                    return
                self._ahead = 0
                self._hear()
            event = self._pending.popleft()
            if event == RESEND:
                self._write(self._sent)
            elif event == DAMAGED:
                if not session.without_acks:
                    self._write(NAK)
            elif event == OVERSIZED or isinstance(event, bytes):
                if not session.without_acks:
                    self._write(ACK)
                answer = session.handle(event) if isinstance(event, bytes) else INVALID
                if isinstance(answer, Leave):
                    self._leave(answer)
                    return
                if isinstance(answer, Run):
                    self._run(answer, session, debugger)
                else:
                    self._send(answer)

    def _leave(self, answer: Leave) -> None:
        if answer.reply is not None:
            self._send(answer.reply)
        if answer.kill:
            self._machine.end(Outcome(USER))

    def _run(self, run: Run, session: Session, debugger: Debugger) -> None:
        """Lets the guest run until it stops, or until the client wants it to or is gone."""
        self._ahead = 0
        self._is_done = False
        job = _Job(run.function, self._done)
        while not self._is_done:
            is_wanted = self._gone or INTERRUPT in self._pending
            if is_wanted:
                debugger.interrupt()
            self._hear(_AGAIN if is_wanted else None)
        while INTERRUPT in self._pending:
            self._pending.remove(INTERRUPT)
        try:
            stop = job.result()
        except KvmpyError:
            self._send(REFUSED)
            return
        assert stop is not None
        for packet in session.stopped(stop):
            self._send(packet)

    def _hear(self, timeout: float | None = None) -> None:
        """Waits, at most for `timeout` milliseconds, for something to happen, and notes what it was."""
        for fd, _ in self._poll.poll(timeout):
            if fd == self._client.fileno():
                self._receive()
            elif fd == self._listener.fileno():
                self._turn_away()
            elif fd == self._wake:
                self._gone = True
                self._poll.unregister(fd)
            else:
                os.eventfd_read(fd)
                self._is_done = True

    def _turn_away(self) -> None:
        if self._gone:
            self._poll.unregister(self._listener)  # Whoever knocks now is the next client.
            return
        try:
            self._listener.accept()[0].close()
        except OSError:
            pass  # It went away by itself.

    def _receive(self) -> None:
        try:
            data = self._client.recv(MAX_PACKET)
        except OSError:
            data = b""
        self._ahead += len(data)
        if not data or self._ahead > MAX_AHEAD:
            self._gone = True
            self._poll.unregister(self._client)
        self._pending.extend(self._reader.feed(data))

    def _send(self, data: bytes) -> None:
        self._sent = encode(data)
        self._write(self._sent)

    def _write(self, data: bytes) -> None:
        try:
            self._client.sendall(data)
        except OSError:
            self._gone = True


class _Job:
    """A call in a thread of its own; `done`, an eventfd, says when it is over."""

    def __init__(self, function: Callable[[], Stop | None], done: int) -> None:
        self._function = function
        self._done = done
        self._result: Stop | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._main, name="kvmpy-gdb-run", daemon=True).start()

    def _main(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        os.eventfd_write(self._done, 1)

    def result(self) -> Stop | None:
        """What the call gave, or raised."""
        if self._error is not None:
            raise self._error
        return self._result
