"""The command `kvmpy`: finds the verb, reads its options, runs it, and turns errors into a sentence and a status."""

from __future__ import annotations

import time

# The report of a machine counts its time line from here.
STARTED = time.monotonic()

import errno  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

from kvmpy.cli import plain  # noqa: E402
from kvmpy.cli.say import RED, say, sentence  # noqa: E402
from kvmpy.errors import KvmpyError  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

# The module and attribute of each verb: a function, or a typer app of further verbs.
VERBS = {
    "boot": "kvmpy.cli.boot:boot",
    "doctor": "kvmpy.cli.doctor:doctor",
    "kernel": "kvmpy.cli.kernel:app",
}

INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE

# What the host refuses when it, or this process, has had enough.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# What a file that we print to says.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def command() -> NoReturn:
    """The process `kvmpy`: `main`, and out."""
    # Until a verb is at work there is no garbage, and looking for it takes a millisecond.
    gc.disable()
    status = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # It is where the process was started without.
                stream.flush()
        except OSError:
            status = status or 1
    # All is closed and written.  Taking the interpreter apart would cost milliseconds, and give back nothing more.
    os._exit(status)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line `words` (default: that of the process) and returns its exit status.

    Typer's own ways out, after help or a usage mistake, raise `SystemExit`.
    """
    try:
        status = _run(sys.argv[1:] if words is None else words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KvmpyError as error:
        say(sentence(error), RED)
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough; the interpreter's last flush is not to complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("KVMPY_DEBUG"):
            raise
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in EXHAUSTED:
            what = getattr(error, "strerror", None) or "not enough memory"
            say(f"{what}; `ulimit -a` shows what this process may have", RED)
            return 1
        if isinstance(error, OSError) and error.errno in UNWRITABLE and error.filename is None:
            say(f"standard output cannot be written: {error.strerror}", RED)
            return 1
        say(f"{type(error).__name__}: {error}; this is a mistake in kvmpy, KVMPY_DEBUG=1 shows where", RED)
        return 1


def _run(words: Sequence[str]) -> int:
    if list(words) == ["--version"]:
        print(version())
        return 0
    # While a shell completes a command line, this variable is set and the words are elsewhere.
    place = VERBS.get(words[0]) if words and "_KVMPY_COMPLETE" not in os.environ else None
    if place is not None:
        verb = _load(place)
        values = plain.read(verb, words[1:]) if verb is not None else None
        if values is not None:
            return verb(**values)  # type: ignore[misc]
    gc.enable()
    from kvmpy.cli import full

    call = full.read(words, VERBS)
    return 0 if call is None else call[0](**call[1])


def _load(place: str) -> Callable[..., int] | None:
    """The function of the verb at `place`, or None where that is a typer app."""
    module_name, _, attribute = place.partition(":")
    if attribute == "app":
        return None
    return getattr(__import__(module_name, fromlist=(attribute,)), attribute)  # type: ignore[no-any-return]


def version() -> str:
    """What `kvmpy --version` prints."""
    from kvmpy import __version__

    return f"kvmpy {__version__}"
