"""The chips of a PC: what every machine has whose guest expects more than a bare processor.

Interrupt controllers and the timer are KVM's own; the others stand on the ISA bus, and ACPI's tables tell of them.
"""

from __future__ import annotations

from kvmpy.devices.acpi.events import GenericEventDevice
from kvmpy.devices.acpi.generation import VmGenerationId
from kvmpy.devices.acpi.power import PowerManagement
from kvmpy.devices.acpi.pvpanic import PvPanic
from kvmpy.devices.legacy.cmos import CMOS_PORT, CMOS_PORTS, Cmos
from kvmpy.devices.legacy.i8042 import I8042
from kvmpy.devices.legacy.ports import PostCodes, SystemControlA
from kvmpy.devices.pci.bus import PCI_CONFIG_PORT, PCI_CONFIG_PORTS, ConfigPorts, Ecam, PciBus
from kvmpy.devices.pci.host import host_bridge
from kvmpy.irq import EdgeLine, LevelLine
from kvmpy.machine.outcome import RESET, SHUTDOWN, Outcome
from kvmpy.x86.acpi import hardware
from kvmpy.x86.acpi.gsi import GsiAllocator
from kvmpy.x86.acpi.platform import AcpiPlatform, PciRoot
from kvmpy.x86.layout import ECAM, ECAM_SIZE, PCI_MEMORY32, PCI_MEMORY32_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.virtio_pci import MessageRoutes

KEYBOARD_IRQ = 1


class Pc:
    """The chips of `machine`, which has memory and a VM without vCPUs.

    `platform` is what ACPI's tables are to tell of them; `gsis` hands out the interrupts that are left; `messages`
    sends the interrupts of PCI functions, once there are any; the others are the chips that others than the guest have
    to do with.
    """

    __slots__ = ("events", "generation", "gsis", "messages", "pci", "platform", "power")

    def __init__(self, machine: Machine) -> None:
        vm, pio, stack = machine.vm, machine.pio, machine.stack
        vm.create_irqchip()
        vm.create_pit()
        self.gsis = GsiAllocator()

        def reset() -> None:
            machine.end(Outcome(RESET))

        def power_off() -> None:
            machine.end(Outcome(SHUTDOWN))

        low, *high = (region.size for region in machine.memory.regions)
        clock = Cmos(machine.clock, memory_below_4g=low, memory_above_4g=sum(high))
        pio.add(CMOS_PORT, CMOS_PORTS, clock, "rtc")
        keyboard = I8042(reset, irq=stack.enter_context(EdgeLine(vm, KEYBOARD_IRQ)))
        pio.add(0x60, 1, keyboard.data_port, "i8042")
        pio.add(0x64, 1, keyboard.command_port, "i8042")
        pio.add(0x80, 1, PostCodes(), "post")
        pio.add(0x92, 1, SystemControlA(reset), "port92")

        self.power = PowerManagement(LevelLine(vm, hardware.SCI), power_off, clock=machine.monotonic)
        pio.add(hardware.PM_BASE, hardware.PM_PORTS, self.power, "acpi-pm")
        ged = self.gsis.take("ged")
        self.events = GenericEventDevice(stack.enter_context(EdgeLine(vm, ged)))
        pio.add(hardware.GED_BASE, hardware.GED_PORTS, self.events, "acpi-ged")
        pio.add(hardware.PVPANIC_BASE, hardware.PVPANIC_PORTS, PvPanic(machine.panicked), "pvpanic")
        self.messages: MessageRoutes | None = None
        self.pci = PciBus()
        self.pci.add(0, host_bridge())
        pio.add(PCI_CONFIG_PORT, PCI_CONFIG_PORTS, ConfigPorts(self.pci, reset), "pci-config")
        machine.mmio.add(ECAM, ECAM_SIZE, Ecam(self.pci), "pci-ecam")

        # Firmware has its own use for the memory below 1 MiB.
        place = None if machine.config.firmware is not None else hardware.VM_GENERATION_ID
        self.generation = None
        if place is not None:
            self.generation = VmGenerationId(machine.memory, place, self.events.generation_changed)
        self.platform = AcpiPlatform(
            range(machine.config.vcpus),
            pm_timer=True,
            pci=PciRoot(memory32=(PCI_MEMORY32, PCI_MEMORY32_SIZE), ecam=ECAM, buses=1),
            ged=ged,
            vm_generation_id=place,
            pvpanic=hardware.PVPANIC_BASE,
        )
