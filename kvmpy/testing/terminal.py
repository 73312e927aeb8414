"""A real process on a real terminal, from the other end of it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
from collections.abc import Sequence

# Seconds after which something that has to happen counts as failed.
PATIENCE = 20


class TerminalProcess:
    """A process whose standard streams are a terminal of its own; it leads its session, in the foreground.

    `before` is how the terminal was set, as `modes` gives it; `seen` is what came and was not asked for yet.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.seen = b""
        self.master, self.slave = pty.openpty()
        self.before = self.modes()
        self.process = subprocess.Popen(
            words,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def modes(self) -> list[object]:
        """How the terminal is set, as `termios.tcgetattr` has it."""
        return termios.tcgetattr(self.slave)

    @property
    def is_raw(self) -> bool:
        """Whether each key goes to the process at once."""
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def expect(self, text: bytes) -> None:
        """Reads on until `text` has come; what comes behind it stays in `seen`."""
        while text not in self.seen:
            assert select.select([self.master], [], [], PATIENCE)[0], self.seen
            self.seen += os.read(self.master, 1000)
        self.seen = self.seen.partition(text)[2]

    def send(self, data: bytes) -> None:
        """Types `data`."""
        os.write(self.master, data)

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, when it has ended."""
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Kills what is left of it, and gives the terminal back."""
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)
