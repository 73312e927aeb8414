"""The terminal that kvmpy was started from: raw while a guest has it, and always given back.

Raw means that each key goes to the guest at once, Ctrl-C and Ctrl-Z included, and nothing is echoed by us.  Output
keeps its processing, so that a line of ours on standard error still begins at the left edge.
"""

from __future__ import annotations

import atexit
import os
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from types import FrameType

    Attributes = list[int | list[bytes | int]]
else:
    import _signal as signal  # `signal` builds enums, which takes longer than the whole of this module.

_IFLAG, _CFLAG, _LFLAG, _CC = 0, 2, 3, 6  # Places in what tcgetattr returns.


class Terminal:
    """A context in which the terminal at `fd` is raw; nothing at all where `fd` is no terminal.

    Enter and leave it in the main thread.  The terminal comes back on leaving, at the interpreter's exit, and while
    the process is stopped; it goes raw again when the process continues in the foreground.  A signal that ends the
    process at once needs a handler that ends the context instead (`kvmpy.host.signals`).
    """

    __slots__ = ("_fd", "_handlers", "_raw", "_saved")

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._saved: Attributes | None = None
        self._raw = False
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> Terminal:
        try:
            self._saved = termios.tcgetattr(self._fd)
        except termios.error:
            return self
        atexit.register(self.restore)
        for number, handler in ((signal.SIGTSTP, self._stop), (signal.SIGCONT, self._continue)):
            self._handlers[number] = signal.signal(number, handler)
        self._set_raw()
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is None:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers.clear()
        self.restore()
        atexit.unregister(self.restore)
        self._saved = None

    @property
    def is_terminal(self) -> bool:
        """Whether there is a terminal and this context has been entered."""
        return self._saved is not None

    def restore(self) -> None:
        """Gives the terminal back as it was found; twice is fine."""
        if self._raw and self._saved is not None:
            self._raw = False
            self._set(self._saved)

    def _set_raw(self) -> None:
        if self._saved is None:
            return
        attributes = list(self._saved)
        attributes[_IFLAG] &= ~(  # type: ignore[operator]
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        attributes[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)  # type: ignore[operator]
        attributes[_CFLAG] = attributes[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8  # type: ignore[operator]
        control = list(attributes[_CC])  # type: ignore[arg-type]
        control[termios.VMIN], control[termios.VTIME] = 1, 0
        attributes[_CC] = control
        self._raw = self._set(attributes)

    def _set(self, attributes: Attributes) -> bool:
        """Sets `attributes` if that is ours to do: in the background the terminal is the shell's, and SIGTTOU stops."""
        try:
            if os.tcgetpgrp(self._fd) != os.getpgrp():
                return False
        except OSError:
            pass  # Not our controlling terminal: nobody else's either.
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
        except termios.error:
            return False  # Hung up: there is no terminal any more.
        return True

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """SIGTSTP from outside (Ctrl-Z itself goes to the guest): gives the terminal back, then really stops."""
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Here when continued, or at once where nobody could continue us (an orphaned process group is not stopped).
        self._continue(signal.SIGCONT, None)

    def _continue(self, _number: int, _frame: FrameType | None) -> None:
        """SIGCONT: the shell has its own modes set, even after a SIGSTOP that gave us no word."""
        if self._handlers:
            signal.signal(signal.SIGTSTP, self._stop)
            self._set_raw()
