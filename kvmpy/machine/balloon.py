"""The balloon of a machine, and how the host gets memory back from a running guest."""

from __future__ import annotations

import mmap
from functools import partial

from kvmpy.devices.virtio.balloon import Balloon
from kvmpy.errors import HostError
from kvmpy.machine.virtio import add_virtio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.machine import Machine
    from kvmpy.memory import GuestMemory


def add_balloon(machine: Machine) -> Balloon:
    """Gives `machine` a virtio balloon, before its ACPI tables are written; `ConfigError` where no room for it is."""
    balloon = Balloon(partial(discard, machine.memory))
    add_virtio(machine, balloon)
    return balloon


def discard(memory: GuestMemory, address: int, length: int) -> None:
    """Gives whole pages of guest RAM back to the host; they read as zeroes until they are written again.

    Raises `GuestMemoryError` for what is no RAM, and `HostError` where the host does not take them.
    """
    region = memory.region_of(address, length)
    memory.writable(address, length).release()  # Marks them dirty: their contents change.
    # A file keeps what is only unmapped.
    advice = mmap.MADV_DONTNEED if region.fd is None else mmap.MADV_REMOVE
    try:
        region.buffer.madvise(advice, address - region.start, length)
    except OSError as error:
        raise HostError("madvise", error.errno or 0) from error
