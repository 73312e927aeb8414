"""How kvmpy speaks to people: one line on standard error."""

from __future__ import annotations

import os
import sys

RED = "31"
YELLOW = "33"


def say(message: str, colour: str = "") -> None:
    """Writes `kvmpy: message` to standard error, its prefix in `colour` (an SGR number) on a terminal.

    Characters that could steer a terminal, as a file name or a guest may bring them, are written as escapes.  A
    standard error that is closed is no error.
    """
    try:
        prefix = "kvmpy:"
        if colour and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            prefix = f"\x1b[{colour}m{prefix}\x1b[m"
        sys.stderr.write(f"{prefix} {printable(message)}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass


def printable(text: str) -> str:
    """`text` on one line and without control characters."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )
