"""kvmpy: a virtual machine monitor in Python.

    from kvmpy import MachineConfig, build

    with build(MachineConfig("bzImage", initrd="initrd.cpio"), output_fd=1) as machine:
        print(machine.run(timeout=60))

What is exported here is loaded when it is used, so that importing the package costs nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.config.machine import MachineConfig as MachineConfig
    from kvmpy.errors import ConfigError as ConfigError
    from kvmpy.errors import ImageError as ImageError
    from kvmpy.errors import KvmError as KvmError
    from kvmpy.errors import KvmpyError as KvmpyError
    from kvmpy.machine.builder import build as build
    from kvmpy.machine.machine import Machine as Machine
    from kvmpy.machine.outcome import Outcome as Outcome

_HOMES = {
    "ConfigError": "kvmpy.errors",
    "ImageError": "kvmpy.errors",
    "KvmError": "kvmpy.errors",
    "KvmpyError": "kvmpy.errors",
    "Machine": "kvmpy.machine.machine",
    "MachineConfig": "kvmpy.config.machine",
    "Outcome": "kvmpy.machine.outcome",
    "build": "kvmpy.machine.builder",
}

__all__ = [
    "ConfigError", "ImageError", "KvmError", "KvmpyError", "Machine", "MachineConfig", "Outcome", "build",
]  # fmt: skip


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
