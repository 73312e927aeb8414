"""Signals that ask the process to end, turned into one orderly call."""

from __future__ import annotations

import _thread
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType
else:
    import _signal as signal  # `signal` builds enums, which takes longer than the whole of this module.

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndSignals:
    """A context in which SIGINT, SIGTERM and SIGHUP call `end(number)` instead of killing.

    `end` runs in a thread of its own, because the main thread may hold any lock while it is interrupted.  The second
    such signal calls `give_up()` and kills, as it would have without us: whoever sends two is not to be kept waiting.
    A signal that was ignored stays so, as under nohup.  Enter and leave it in the main thread.
    """

    __slots__ = ("_end", "_give_up", "_handlers", "received")

    def __init__(self, end: Callable[[int], None], give_up: Callable[[], None] = lambda: None) -> None:
        self._end = end
        self._give_up = give_up
        self._handlers: dict[int, object] = {}
        self.received: int | None = None

    def __enter__(self) -> EndSignals:
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = int(number)
            _thread.start_new_thread(self._end, (self.received,))
            return
        self._give_up()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
