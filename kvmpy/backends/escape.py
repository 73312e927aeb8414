"""The keys that a terminal keeps for kvmpy: Ctrl-A and a letter, as in QEMU."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CTRL_A = 0x01

HELP = """
Ctrl-A x       end the machine
Ctrl-A b       send a break
Ctrl-A Ctrl-A  send Ctrl-A itself
Ctrl-A h       show these lines
"""


def show_help() -> None:
    """Writes `HELP` to standard error."""
    try:
        os.write(2, HELP.encode())
    except OSError:
        pass  # Nobody to help.


class Escapes:
    """Takes the escapes out of what is typed and calls `end`, `send_break` or `show` for them.

    An unknown letter after Ctrl-A is dropped with it.  Ctrl-A c is reserved for a monitor.
    """

    __slots__ = ("_actions", "_escaped")

    def __init__(
        self,
        end: Callable[[], object],
        send_break: Callable[[], object] = lambda: None,
        show: Callable[[], object] = show_help,
    ) -> None:
        self._actions = {ord("x"): end, ord("b"): send_break, ord("h"): show, ord("?"): show}
        self._escaped = False

    def filter(self, data: bytes) -> bytes:
        """What of `data` is for the guest; an escape may begin in one call and end in the next."""
        if not self._escaped and CTRL_A not in data:
            return data
        rest = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == CTRL_A:
                    self._escaped = True
                else:
                    rest.append(byte)
                continue
            self._escaped = False
            if byte == CTRL_A:
                rest.append(byte)
            elif byte in self._actions:
                self._actions[byte]()
        return bytes(rest)
