"""The disks of a machine: each an image on the host, and a virtio block device for the guest."""

from __future__ import annotations

from select import EPOLLIN

from kvmpy.backends.disk import Disk
from kvmpy.config.drive import NONE
from kvmpy.devices.virtio.block import Block
from kvmpy.machine.virtio import add_virtio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.config.drive import DriveConfig
    from kvmpy.machine.machine import Machine


def add_drive(machine: Machine, config: DriveConfig) -> Block:
    """Gives `machine` the disk that `config` asks for; before its ACPI tables are written.

    The guest finds disks in the order in which they come: /dev/vda, /dev/vdb.  Raises what `Disk` raises.
    """
    disk = machine.stack.enter_context(
        Disk(config.path, read_only=config.read_only, direct=config.cache == NONE, engine=config.engine)
    )
    serial = config.serial or f"kvmpy-drive-{len(machine.drives)}"
    block = Block(disk, queues=config.queues, identity=serial.encode("ascii"))
    add_virtio(machine, block)
    machine.reactor.add(disk.event_fd, EPOLLIN, lambda _events: block.complete())
    machine.drives.append(block)
    return block
