"""How a machine's run ended: an exit status, a reason, a sentence."""

from __future__ import annotations

SHUTDOWN = "shutdown"
RESET = "reset"
DEBUG_EXIT = "debug-exit"
CRASH = "crash"
PANIC = "panic"
TIMEOUT = "timeout"
SIGNAL = "signal"
USER = "user"
HOST_ERROR = "host-error"

GUEST_ENDS = (SHUTDOWN, RESET, DEBUG_EXIT, CRASH, PANIC)
"""The reasons that lie with the guest: it said all that it had to say."""

_STATUS = {SHUTDOWN: 0, RESET: 0, USER: 0, HOST_ERROR: 1, CRASH: 3, PANIC: 3, TIMEOUT: 124}


class Outcome:
    """Why a machine stopped.

    `reason` is one of this module's constants; `status` is the exit status of the command line; `message` is one
    sentence for people, `details` further lines (registers, a traceback), both empty where there is nothing to say.
    """

    __slots__ = ("details", "message", "reason", "status")

    def __init__(self, reason: str, message: str = "", *, details: str = "", status: int | None = None) -> None:
        self.reason = reason
        self.status = _STATUS[reason] if status is None else status
        self.message = message
        self.details = details

    def __repr__(self) -> str:
        return f"Outcome({self.reason!r}, status={self.status}, message={self.message!r})"
