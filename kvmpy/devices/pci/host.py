"""The host bridge: what every PCI bus has in slot 0, so that firmware and kernels believe that there is a bus.

It is QEMU's generic PCI Express host (1b36:0008), and not one of Intel's chipsets that firmware knows by name: those
are expected to have registers of their own, to open the memory below 1 MiB (PAM), to route interrupts (PIIX, ICH) and,
82Q35, to move ECAM to 0xb0000000, which is RAM here.  A bridge that nobody knows is left as it is.
"""

from __future__ import annotations

from kvmpy.devices.pci.config import ConfigSpace
from kvmpy.devices.pci.function import PciFunction

PCI_VENDOR_ID_REDHAT = 0x1B36
PCI_DEVICE_ID_REDHAT_PCIE_HOST = 0x0008
PCI_CLASS_BRIDGE_HOST = 0x060000


def host_bridge() -> PciFunction:
    """A host bridge, for slot 0."""
    return PciFunction(ConfigSpace(PCI_VENDOR_ID_REDHAT, PCI_DEVICE_ID_REDHAT_PCIE_HOST, PCI_CLASS_BRIDGE_HOST))
