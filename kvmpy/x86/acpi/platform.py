"""What machine the tables describe: `AcpiPlatform` and its parts, checked."""

from __future__ import annotations

from kvmpy.errors import ConfigError
from kvmpy.units import GIB, MIB
from kvmpy.x86.acpi.gsi import IOAPIC_PINS
from kvmpy.x86.acpi.hardware import RESET_CONTROL, SCI

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# A device's name has three hexadecimal digits for its number.
MAX_INDEX = 0xFFF

ECAM_BYTES_PER_BUS = MIB


class PciRoot:
    """A PCI root bridge with `buses` buses, legacy configuration ports and, at `ecam`, memory-mapped configuration.

    `memory32` and `memory64` are windows, each (address, size), for BARs below 4 GiB and above.  `routes` says on
    which GSI a device's pin is: (device, pin, gsi), with pin 0 for INTA.
    """

    __slots__ = ("buses", "ecam", "memory32", "memory64", "routes")

    def __init__(
        self,
        *,
        memory32: tuple[int, int],
        memory64: tuple[int, int] | None = None,
        ecam: int | None = None,
        buses: int = 256,
        routes: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        if not 1 <= buses <= 256:
            raise ConfigError("pci", f"{buses} buses are not 1 to 256")
        self.buses = buses
        self.memory32 = _window("pci.memory32", *memory32, limit=4 * GIB)
        self.memory64 = None if memory64 is None else _window("pci.memory64", *memory64)
        if ecam is not None:
            _window("pci.ecam", ecam, self.ecam_size)
        self.ecam = ecam
        for device, pin, gsi in routes:
            if not (0 <= device < 32 and 0 <= pin < 4 and 0 <= gsi < IOAPIC_PINS):
                raise ConfigError("pci.routes", f"device {device}, pin {pin}, interrupt {gsi} is no route")
        self.routes = tuple(routes)

    @property
    def ecam_size(self) -> int:
        """The bytes of memory-mapped configuration space."""
        return self.buses * ECAM_BYTES_PER_BUS


class NumaNode:
    """A proximity domain: the APIC ids of its CPUs, and its memory as (address, size) in bytes."""

    __slots__ = ("apic_ids", "memory")

    def __init__(self, apic_ids: Sequence[int], memory: Sequence[tuple[int, int]]) -> None:
        self.apic_ids = tuple(apic_ids)
        self.memory = tuple(memory)


class AcpiPlatform:
    """A machine as its tables show it; what is not given is not there.

    `apic_ids`: one for each vCPU, rising.
    `hardware_reduced`: no fixed registers, PIC or PIT: the guest sees only what is described, and its buttons are
        devices behind the generic event device.
    `pm_timer`: whether the power management timer is there (4.8.3.3).
    `reset`: (port, value) that resets, or None.
    `serial`: (port, irq) of each serial port, COM1 first.
    `rtc`, `keyboard`: whether there are a CMOS clock, whose interrupt is `rtc_irq`, and an i8042 with a keyboard.
    `virtio_mmio`: (address, size, gsi) of each device, its interrupt edge-triggered.
    `pci`: the root bridge.
    `ged`: the GSI of the generic event device, edge-triggered.
    `vm_generation_id`: where its 16 bytes are.
    `pvpanic`: its port.
    `nodes`: the NUMA nodes, whose number is their place.

    Raises `ConfigError` for an interrupt that two devices have, or what no table can say.
    """

    __slots__ = (
        "apic_ids", "ged", "hardware_reduced", "keyboard", "nodes", "pci", "pm_timer", "pvpanic", "reset", "rtc",
        "rtc_irq", "serial", "virtio_mmio", "vm_generation_id",
    )  # fmt: skip

    def __init__(
        self,
        apic_ids: Sequence[int],
        *,
        hardware_reduced: bool = False,
        pm_timer: bool = False,
        reset: tuple[int, int] | None = RESET_CONTROL,
        serial: Sequence[tuple[int, int]] = ((0x3F8, 4),),
        rtc: bool = True,
        rtc_irq: int | None = None,
        keyboard: bool = True,
        virtio_mmio: Sequence[tuple[int, int, int]] = (),
        pci: PciRoot | None = None,
        ged: int | None = None,
        vm_generation_id: int | None = None,
        pvpanic: int | None = None,
        nodes: Sequence[NumaNode] = (),
    ) -> None:
        self.apic_ids = tuple(apic_ids)
        self.hardware_reduced = hardware_reduced
        self.pm_timer = pm_timer
        self.reset = reset
        self.serial = tuple(serial)
        self.rtc = rtc
        self.rtc_irq = rtc_irq
        self.keyboard = keyboard
        self.virtio_mmio = tuple(virtio_mmio)
        self.pci = pci
        self.ged = ged
        self.vm_generation_id = vm_generation_id
        self.pvpanic = pvpanic
        self.nodes = tuple(nodes)
        self._check()

    def _check(self) -> None:
        ids = self.apic_ids
        if not 1 <= len(ids) <= MAX_INDEX + 1:
            raise ConfigError("vcpus", f"{len(ids)} is not 1 to {MAX_INDEX + 1}, all that the tables can name")
        # 0xffffffff means all of them.
        if ids[0] < 0 or ids[-1] >= 0xFFFFFFFF or list(ids) != sorted(set(ids)):
            raise ConfigError("vcpus", "their APIC ids are not rising 32-bit numbers")
        if len(self.virtio_mmio) > MAX_INDEX + 1:
            raise ConfigError("virtio_mmio", f"{len(self.virtio_mmio)} devices are more than the tables can name")
        for address, size, _ in self.virtio_mmio:
            _window("virtio_mmio", address, size)
        owners: dict[int, str] = {}
        for what, gsi in self._interrupts():
            if not 0 <= gsi < IOAPIC_PINS:
                raise ConfigError(what, f"interrupt {gsi} is none of the I/O APIC's {IOAPIC_PINS} pins")
            if gsi in owners:
                raise ConfigError(what, f"interrupt {gsi} is that of {owners[gsi]} already")
            owners[gsi] = what
        for _, _, gsi in self.pci.routes if self.pci is not None else ():
            if gsi in owners:
                raise ConfigError("pci.routes", f"interrupt {gsi} is that of {owners[gsi]} already")

    def _interrupts(self) -> list[tuple[str, int]]:
        """Who has which interrupt for himself."""
        found = [(f"serial[{index}]", irq) for index, (_, irq) in enumerate(self.serial)]
        found += [(f"virtio_mmio[{index}]", gsi) for index, (_, _, gsi) in enumerate(self.virtio_mmio)]
        if not self.hardware_reduced:
            found += [("pit", 2), ("sci", SCI)]
        if self.keyboard:
            found.append(("keyboard", 1))
        if self.rtc_irq is not None:
            found.append(("rtc", self.rtc_irq))
        if self.ged is not None:
            found.append(("ged", self.ged))
        return found


def _window(path: str, address: int, size: int, *, limit: int = 1 << 52) -> tuple[int, int]:
    if not (address >= 0 and size > 0 and address + size <= limit):
        raise ConfigError(path, f"{address:#x}, {size:#x} bytes long, is outside of the address space")
    return address, size
