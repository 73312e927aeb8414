"""How kvmpy speaks to people: one line on standard error."""

from __future__ import annotations

import os
import sys

from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.errors import KvmpyError

RED = "31"
YELLOW = "33"

# What `MachineConfig` calls otherwise than the command line does.
_OPTIONS = {"vcpus": "cpus", "debug_exit": "debug-exit"}


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


def sentence(error: KvmpyError) -> str:
    """What `error` says, with an option by its name on the command line."""
    if isinstance(error, ConfigError) and error.path in _OPTIONS:
        return _OPTIONS[error.path] + str(error).removeprefix(error.path)
    return str(error)


def printable(text: str) -> str:
    """`text` on one line and without control characters."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )
