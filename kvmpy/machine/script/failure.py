"""What is told of a script that failed: one sentence, its own part of the traceback, the guest's state."""

from __future__ import annotations

import os
import traceback

import kvmpy
from kvmpy.machine.assist.report import describe_crash
from kvmpy.machine.outcome import HOST_ERROR, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vcpu
    from kvmpy.memory import GuestMemory

_PACKAGE = os.path.dirname(kvmpy.__file__) + os.sep
_NO_PART = ("<frozen ",)


def script_traceback(error: BaseException) -> str:
    """The traceback of `error`, without what kvmpy did before it called the script."""
    frames = traceback.extract_tb(error.__traceback__)
    own = next(
        (at for at, frame in enumerate(frames) if not frame.filename.startswith((_PACKAGE, *_NO_PART))), len(frames)
    )
    lines = traceback.format_list(frames[own:])
    heading = ["Traceback (most recent call last):\n"] if lines else []
    return "".join([*heading, *lines, *traceback.format_exception_only(error)]).rstrip()


def failure(what: str, error: BaseException, vcpu: Vcpu | None = None, memory: GuestMemory | None = None) -> Outcome:
    """The machine's end by a hook, `what`, that raised `error`; with the state of the `vcpu` that waited for it."""
    details = script_traceback(error)
    if vcpu is not None and memory is not None:
        details = f"{details}\n{describe_crash(vcpu, memory)}"
    return Outcome(HOST_ERROR, f"a script's hook failed, {what}: {sentence(error)}", details=details)


def sentence(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
