"""Platforms, and their tables read back as a guest reads them: from the RSDP on, by address."""

from __future__ import annotations

import struct

import pytest

from kvmpy.memory import GuestMemory
from kvmpy.units import MIB
from kvmpy.x86.acpi.platform import AcpiPlatform, NumaNode, PciRoot
from kvmpy.x86.acpi.write import write_acpi


def _everything():
    pci = PciRoot(
        memory32=(0xC0000000, 0x10000000),
        memory64=(1 << 41, 1 << 40),
        ecam=0xE0000000,
        routes=[(device, pin, 20 + (device + pin) % 4) for device in range(1, 32) for pin in range(4)],
    )
    return AcpiPlatform(
        [0, 1, 2, 3, 255, 256],
        pm_timer=True,
        rtc_irq=8,
        virtio_mmio=[(0xD0000000, 0x1000, 17), (0xD0001000, 0x1000, 18), (1 << 40, 0x1000, 5)],
        pci=pci,
        ged=16,
        vm_generation_id=0xEF000,
        pvpanic=0x505,
        nodes=[NumaNode([0, 1, 2], [(0, 1 << 30)]), NumaNode([3, 255, 256], [(1 << 32, 1 << 30)])],
    )


_PLATFORMS = {
    "plain": lambda: AcpiPlatform([0]),
    "bare": lambda: AcpiPlatform([0], reset=None, serial=(), rtc=False, keyboard=False),
    "legacy-pci": lambda: AcpiPlatform([0], pci=PciRoot(memory32=(0xC0000000, 0x10000000), buses=1)),
    "everything": _everything,
    "many": lambda: AcpiPlatform(range(254)),
    "reduced": lambda: AcpiPlatform(
        range(2), hardware_reduced=True, ged=16, vm_generation_id=0xEF000, pvpanic=0x505,
        virtio_mmio=[(0xD0000000, 0x1000, 17)],
    ),
}  # fmt: skip


@pytest.fixture
def platform():
    """An `AcpiPlatform` by its name in this file."""
    return lambda name: _PLATFORMS[name]()


@pytest.fixture(params=_PLATFORMS)
def any_platform(request):
    return _PLATFORMS[request.param]()


@pytest.fixture
def tables():
    """The tables of a platform by their signatures, found from the RSDP on."""

    def read(platform):
        with GuestMemory(MIB) as memory:
            rsdp = memory.read(write_acpi(memory, platform), 36)

            def at(address):
                return memory.read(address, struct.unpack_from("<I", memory.read(address, 8), 4)[0])

            rsdt, xsdt = struct.unpack_from("<I4xQ", rsdp, 16)
            found = {"RSDP": rsdp, "RSDT": at(rsdt), "XSDT": at(xsdt)}
            pointers = struct.unpack(f"<{(len(found['XSDT']) - 36) // 8}Q", found["XSDT"][36:])
            assert pointers == struct.unpack(f"<{len(pointers)}I", found["RSDT"][36:])
            for address in pointers:
                found[at(address)[:4].decode()] = at(address)
            facs, dsdt = struct.unpack_from("<II", found["FACP"], 36)
            found["DSDT"] = at(dsdt)
            if facs:
                assert facs % 64 == 0
                found["FACS"] = at(facs)
            return found

    return read
