"""The FADT: the fixed hardware, and what legacy there is (ACPI 6.5, 5.2.9)."""

from __future__ import annotations

import struct

from kvmpy.x86.acpi.hardware import PM1_CNT, PM1_STS, PM_BASE, PM_TMR, SCI, SLEEP_CONTROL, SLEEP_STATUS
from kvmpy.x86.acpi.tables import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.x86.acpi.platform import AcpiPlatform

FADT_REVISION = 6
FADT_MINOR = 5

# Flags (table 5.10).
WBINVD = 1 << 0
PROC_C1 = 1 << 2
PWR_BUTTON = 1 << 4  # it is a device, not in the fixed registers
SLP_BUTTON = 1 << 5
FIX_RTC = 1 << 6  # the clock's wake-up is not in the fixed registers
TMR_VAL_EXT = 1 << 8  # the timer has 32 bits
RESET_REG_SUP = 1 << 10
HW_REDUCED_ACPI = 1 << 20

# IAPC_BOOT_ARCH (table 5.11).
LEGACY_DEVICES = 1 << 0
HAS_8042 = 1 << 1
VGA_NOT_PRESENT = 1 << 2
CMOS_RTC_NOT_PRESENT = 1 << 5

RTC_CENTURY = 0x32

# Latencies that say that there is no C2 and no C3.
_NO_C2 = 101
_NO_C3 = 1001

# Address spaces and access sizes of a generic address (5.2.3.2).
_SYSTEM_IO = 1
_BYTE_ACCESS, _WORD_ACCESS, _DWORD_ACCESS = 1, 2, 3

_NOWHERE = bytes(12)


def fadt(platform: AcpiPlatform, *, facs_address: int, dsdt_address: int) -> bytes:
    """The FADT of `platform`, whose other two tables are at these addresses, below 4 GiB."""
    fixed = not platform.hardware_reduced
    timer = fixed and platform.pm_timer
    event, control, counter = PM_BASE + PM1_STS, PM_BASE + PM1_CNT, PM_BASE + PM_TMR
    reset_port, reset_value = platform.reset or (0, 0)
    body = struct.pack(
        "<II BBH IBBBB IIII IIII BBBB BBBB HHHH BBBBB HBI",
        facs_address, dsdt_address,
        0, 0, SCI if fixed else 0,
        0, 0, 0, 0, 0,  # no SMI_CMD: ACPI is always on
        event if fixed else 0, 0, control if fixed else 0, 0,
        0, counter if timer else 0, 0, 0,
        4 if fixed else 0, 2 if fixed else 0, 0, 4 if timer else 0,
        0, 0, 0, 0,
        _NO_C2, _NO_C3, 0, 0,
        0, 0, 0, 0, RTC_CENTURY if platform.rtc else 0,
        _boot_flags(platform), 0, _flags(platform),
    )  # fmt: skip
    body += _port(reset_port, 8, _BYTE_ACCESS) if platform.reset else _NOWHERE
    body += struct.pack("<BHB", reset_value, 0, FADT_MINOR)
    body += struct.pack("<QQ", 0, dsdt_address)
    body += _port(event, 32, _WORD_ACCESS) if fixed else _NOWHERE
    body += _NOWHERE
    body += _port(control, 16, _WORD_ACCESS) if fixed else _NOWHERE
    body += _NOWHERE * 2
    body += _port(counter, 32, _DWORD_ACCESS) if timer else _NOWHERE
    body += _NOWHERE * 2
    body += _NOWHERE if fixed else _port(PM_BASE + SLEEP_CONTROL, 8, _BYTE_ACCESS)
    body += _NOWHERE if fixed else _port(PM_BASE + SLEEP_STATUS, 8, _BYTE_ACCESS)
    body += bytes(8)  # the hypervisor's identity: CPUID has it
    return table(b"FACP", FADT_REVISION, body)


def _flags(platform: AcpiPlatform) -> int:
    flags = WBINVD | PROC_C1 | FIX_RTC
    if platform.hardware_reduced:
        flags |= HW_REDUCED_ACPI | PWR_BUTTON | SLP_BUTTON
    elif platform.pm_timer:
        flags |= TMR_VAL_EXT
    if platform.reset is not None:
        flags |= RESET_REG_SUP
    return flags


def _boot_flags(platform: AcpiPlatform) -> int:
    flags = VGA_NOT_PRESENT
    if not platform.hardware_reduced or platform.serial:
        flags |= LEGACY_DEVICES
    if platform.keyboard:
        flags |= HAS_8042
    if not platform.rtc:
        flags |= CMOS_RTC_NOT_PRESENT
    return flags


def _port(address: int, bits: int, access: int) -> bytes:
    return struct.pack("<BBBBQ", _SYSTEM_IO, bits, 0, access, address)
