"""Which platforms no table can describe."""

from __future__ import annotations

import pytest

from kvmpy.errors import ConfigError
from kvmpy.x86.acpi.platform import AcpiPlatform, PciRoot

WINDOW = (0xC0000000, 0x10000000)


@pytest.mark.parametrize("ids", [[], [0, 0], [1, 0], [-1], [0xFFFFFFFF], range(0x1001)])
def test_apic_ids_that_no_machine_has(ids):
    with pytest.raises(ConfigError, match="vcpus"):
        AcpiPlatform(ids)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"virtio_mmio": [(0xD0000000, 0x1000, 16), (0xD0001000, 0x1000, 16)]}, r"virtio_mmio\[1\]: interrupt 16"),
        ({"virtio_mmio": [(0xD0000000, 0x1000, 24)]}, r"virtio_mmio\[0\]: interrupt 24 is none"),
        ({"serial": [(0x3F8, 4), (0x2F8, 4)]}, r"serial\[1\]: interrupt 4 is that of serial\[0\]"),
        ({"ged": 9}, "ged: interrupt 9 is that of sci"),
        ({"ged": 1}, "ged: interrupt 1 is that of keyboard"),
        ({"rtc_irq": 2}, "rtc: interrupt 2 is that of pit"),
        ({"ged": 16, "pci": PciRoot(memory32=WINDOW, routes=[(1, 0, 16)])}, "pci.routes: interrupt 16"),
    ],
)
def test_two_devices_with_one_interrupt(options, what):
    with pytest.raises(ConfigError, match=what):
        AcpiPlatform([0], **options)


def test_a_hardware_reduced_machine_has_neither_pit_nor_sci():
    AcpiPlatform([0], hardware_reduced=True, ged=9, rtc_irq=2)


def test_pci_pins_may_share_an_interrupt():
    AcpiPlatform([0], pci=PciRoot(memory32=WINDOW, routes=[(1, 0, 16), (2, 0, 16)]))


@pytest.mark.parametrize(
    "options",
    [
        {"memory32": (0xF0000000, 0x20000000)},
        {"memory32": (0xC0000000, 0)},
        {"memory32": WINDOW, "memory64": (1 << 52, 0x1000)},
        {"memory32": WINDOW, "buses": 0},
        {"memory32": WINDOW, "buses": 257},
        {"memory32": WINDOW, "ecam": -1},
        {"memory32": WINDOW, "routes": [(32, 0, 16)]},
        {"memory32": WINDOW, "routes": [(1, 4, 16)]},
        {"memory32": WINDOW, "routes": [(1, 0, 24)]},
    ],
)
def test_pci_that_cannot_be(options):
    with pytest.raises(ConfigError, match="pci"):
        PciRoot(**options)


@pytest.mark.parametrize("place", [(-1, 0x1000, 16), (0xD0000000, 0, 16), (1 << 52, 0x1000, 16)])
def test_virtio_registers_outside_of_the_address_space(place):
    with pytest.raises(ConfigError, match="virtio_mmio"):
        AcpiPlatform([0], virtio_mmio=[place])


def test_more_virtio_devices_than_names():
    with pytest.raises(ConfigError, match="virtio_mmio"):
        AcpiPlatform([0], virtio_mmio=[(0xD0000000, 0x1000, 16)] * 0x1001)
