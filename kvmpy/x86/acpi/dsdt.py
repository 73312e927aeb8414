"""The DSDT's terms: the devices that a guest cannot find by looking (ACPI 6.5, chapters 6 and 9)."""

from __future__ import annotations

from kvmpy.units import GIB
from kvmpy.x86.acpi.aml import (
    And,
    Arg0,
    Arg3,
    ByteAcc,
    CreateDWordField,
    Device,
    EisaId,
    Else,
    Equal,
    Field,
    If,
    Local0,
    Method,
    Name,
    NoLock,
    Notify,
    OperationRegion,
    Or,
    Package,
    Path,
    Preserve,
    Return,
    Scope,
    Serialized,
    Store,
    SystemIO,
    ToUuid,
)
from kvmpy.x86.acpi.hardware import (
    EVENT_POWER_BUTTON,
    EVENT_SLEEP_BUTTON,
    EVENT_VM_GENERATION,
    GED_BASE,
    GED_PORTS,
    PVPANIC_PORTS,
    S5_SLEEP_TYPE,
)
from kvmpy.x86.acpi.resources import (
    IO,
    DWordMemory,
    Interrupt,
    IRQNoFlags,
    Memory32Fixed,
    QWordMemory,
    ResourceTemplate,
    WordBusNumber,
    WordIO,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.x86.acpi.platform import AcpiPlatform, PciRoot

_BUTTON_PRESSED = 0x80  # and, for VMGenID, that the ID has changed

# Present, enabled and working, but nothing to show to a user.
_STA_HIDDEN = 0x0B

# PCI firmware specification 3.3, 4.5.1: who may control what of a root bridge.
_OSC_PCI = "33DB4D5B-1FF7-401C-9657-7441C03DD766"
_OSC_UNRECOGNIZED_UUID = 0x04

_SERIAL_PORTS = 8


def definition(platform: AcpiPlatform) -> bytes:
    """The terms of `platform`'s DSDT."""
    devices = [_cpu(index) for index in range(len(platform.apic_ids))]
    devices += [_serial(index, port, irq) for index, (port, irq) in enumerate(platform.serial)]
    if platform.rtc:
        devices.append(_rtc(platform.rtc_irq))
    if platform.keyboard:
        devices.append(_keyboard())
    devices += [_virtio_mmio(index, *place) for index, place in enumerate(platform.virtio_mmio)]
    if platform.pci is not None:
        devices.append(_pci_root(platform.pci))
        if platform.pci.ecam is not None:
            devices.append(_motherboard(platform.pci.ecam, platform.pci.ecam_size))
    if platform.pvpanic is not None:
        devices.append(_pvpanic(platform.pvpanic))
    devices += _events(platform)
    return Scope("\\_SB", *devices) + Name("_S5", Package(S5_SLEEP_TYPE, S5_SLEEP_TYPE, 0, 0))


def _cpu(index: int) -> bytes:
    # The MADT's entry with the same UID says which APIC it is.
    return Device(f"C{index:03X}", Name("_HID", "ACPI0007"), Name("_UID", index))


def _serial(index: int, port: int, irq: int) -> bytes:
    return Device(
        f"COM{index + 1:X}",
        Name("_HID", EisaId("PNP0501")),
        Name("_UID", index + 1),
        Name("_CRS", ResourceTemplate(IO(port, _SERIAL_PORTS), IRQNoFlags(irq))),
    )


def _rtc(irq: int | None) -> bytes:
    interrupt = b"" if irq is None else IRQNoFlags(irq)
    return Device("RTC", Name("_HID", EisaId("PNP0B00")), Name("_CRS", ResourceTemplate(IO(0x70, 2), interrupt)))


def _keyboard() -> bytes:
    return Device(
        "KBD",
        Name("_HID", EisaId("PNP0303")),
        Name("_CRS", ResourceTemplate(IO(0x60, 1), IO(0x64, 1), IRQNoFlags(1))),
    )


def _virtio_mmio(index: int, address: int, size: int, gsi: int) -> bytes:
    return Device(
        f"V{index:03X}",
        Name("_HID", "LNRO0005"),
        Name("_UID", index),
        Name("_CRS", ResourceTemplate(_registers(address, size), Interrupt(gsi))),
    )


def _pci_root(pci: PciRoot) -> bytes:
    windows = [
        WordBusNumber(0, pci.buses - 1),
        IO(0xCF8, 8),
        WordIO(0x0000, 0x0CF7),
        WordIO(0x0D00, 0xFFFF),
        DWordMemory(pci.memory32[0], sum(pci.memory32) - 1),
    ]
    if pci.memory64 is not None:
        windows.append(QWordMemory(pci.memory64[0], sum(pci.memory64) - 1, cacheable=True))
    terms = [
        # PNP0A08 is PCI Express, which has configuration space in memory.
        Name("_HID", EisaId("PNP0A03" if pci.ecam is None else "PNP0A08")),
        Name("_UID", 0),
        Name("_SEG", 0),
        Name("_BBN", 0),
        Name("_CRS", ResourceTemplate(*windows)),
    ]
    if pci.ecam is not None:
        terms.append(Name("_CID", EisaId("PNP0A03")))
        terms.append(_osc())
    if pci.routes:
        routes = [Package(device << 16 | 0xFFFF, pin, 0, gsi) for device, pin, gsi in pci.routes]
        terms.append(Name("_PRT", Package(*routes)))
    return Device("PCI0", *terms)


def _osc() -> bytes:
    """The guest controls all that it asks for: no firmware runs here that could want it."""
    return Method(
        "_OSC", 4,
        If(Equal(Arg0, ToUuid(_OSC_PCI)), Return(Arg3)),
        Else(
            CreateDWordField(Arg3, 0, "CDW1"),
            Or(Path("CDW1"), _OSC_UNRECOGNIZED_UUID, "CDW1"),
            Return(Arg3),
        ),
        flags=Serialized,
    )  # fmt: skip


def _motherboard(address: int, size: int) -> bytes:
    """Whose address space nobody else may use: Linux looks for the ECAM here before it trusts the MCFG."""
    return Device(
        "MBRD", Name("_HID", EisaId("PNP0C02")), Name("_CRS", ResourceTemplate(_registers(address, size)))
    )  # fmt: skip


def _pvpanic(port: int) -> bytes:
    return Device(
        "PEVT",
        Name("_HID", "QEMU0001"),
        Name("_STA", _STA_HIDDEN),
        Name("_CRS", ResourceTemplate(IO(port, PVPANIC_PORTS))),
    )


def _events(platform: AcpiPlatform) -> list[bytes]:
    """The generic event device (5.6.9), and the devices that it speaks for."""
    devices, answers = [], []
    if platform.vm_generation_id is not None:
        devices.append(_vm_generation_id(platform.vm_generation_id))
        answers.append((EVENT_VM_GENERATION, "VGEN"))
    if platform.hardware_reduced and platform.ged is not None:
        devices.append(Device("PWRB", Name("_HID", EisaId("PNP0C0C"))))
        devices.append(Device("SLPB", Name("_HID", EisaId("PNP0C0E"))))
        answers += [(EVENT_POWER_BUTTON, "PWRB"), (EVENT_SLEEP_BUTTON, "SLPB")]
    if platform.ged is not None:
        devices.append(
            Device(
                "GED",
                Name("_HID", "ACPI0013"),
                Name("_UID", 0),
                Name("_CRS", ResourceTemplate(Interrupt(platform.ged))),
                OperationRegion("EVTR", SystemIO, GED_BASE, GED_PORTS),
                Field("EVTR", ByteAcc | NoLock | Preserve, ("EVST", 8)),
                Method(
                    "_EVT", 1,
                    Store(Path("EVST"), Local0),
                    *(If(And(Local0, bit), Notify(name, _BUTTON_PRESSED)) for bit, name in answers),
                    flags=Serialized,
                ),
            )
        )  # fmt: skip
    return devices


def _vm_generation_id(address: int) -> bytes:
    """As Microsoft's "Virtual Machine Generation ID" has it; VMGENCTR is the name that fits the rules for IDs."""
    return Device(
        "VGEN",
        Name("_HID", "KVMP0001"),
        Name("_CID", Package("VM_Gen_Counter", "VMGENCTR")),
        Name("_DDN", "VM_Gen_Counter"),
        Name("ADDR", Package(address & 0xFFFFFFFF, address >> 32)),
    )


def _registers(address: int, size: int) -> bytes:
    if address + size <= 4 * GIB:
        return Memory32Fixed(address, size)
    return QWordMemory(address, address + size - 1, consumer=True)
