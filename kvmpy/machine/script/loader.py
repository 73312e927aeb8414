"""`load_script`: a Python file that is run for a machine, before or after it starts."""

from __future__ import annotations

import os
import sys
from types import ModuleType

from kvmpy.errors import KvmpyError
from kvmpy.machine.script.device import Register, RegisterDevice
from kvmpy.machine.script.failure import script_traceback, sentence
from kvmpy.machine.script.symbols import Symbols

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.machine import Machine

# What a script has of its machine without saying `machine`.
BOUND = ("on_pio", "on_mmio", "on_msr", "on_doorbell", "on_hypercall", "on_exit", "trace")

MOST_BYTES = 16 << 20


class ScriptError(KvmpyError):
    """A script that cannot be read, or that failed; `details` is the script's part of the traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def load_script(machine: Machine, path: str | os.PathLike[str]) -> ModuleType:
    """Runs the file at `path` in a module of its own, and gives that; `ScriptError` where it fails.

    It has `machine`, the names in `BOUND` (`on_pio(0x42)` is `machine.on_pio(0x42)`), `Register`, `RegisterDevice` and
    `Symbols`, and may import what lies beside it.  Its `__name__` is "kvmpy_script".  What it hooks stays when it ends.
    """
    name = os.fspath(path)
    module = ModuleType("kvmpy_script")
    module.__file__ = name
    names: dict[str, object] = {bound: getattr(machine, bound) for bound in BOUND}
    names |= {"machine": machine, "Register": Register, "RegisterDevice": RegisterDevice, "Symbols": Symbols}
    vars(module).update(names)
    try:
        with open(name, "rb") as file:
            source = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ScriptError(f"script {name}: {error.strerror}") from None
    if len(source) > MOST_BYTES:
        raise ScriptError(f"script {name} has more than {MOST_BYTES} bytes; it is no script")
    folder = os.path.dirname(os.path.abspath(name))
    sys.path.insert(0, folder)
    try:
        exec(compile(source, name, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise ScriptError(f"script {name} failed: {sentence(error)}", script_traceback(error)) from None
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module
