"""Scripts that look at a machine and take part in it: hooks on its exits, devices, traces, a debugger.

`Machine`'s methods `on_pio`, `on_mmio`, `on_msr`, `on_doorbell`, `on_hypercall`, `on_exit`, `trace` and `debugger` are
the way in.  Nothing of this is imported before it is used.
"""

from __future__ import annotations

from kvmpy.machine.script.device import Register, RegisterDevice
from kvmpy.machine.script.loader import ScriptError, load_script
from kvmpy.machine.script.symbols import Symbols

__all__ = ["Register", "RegisterDevice", "ScriptError", "Symbols", "load_script"]
