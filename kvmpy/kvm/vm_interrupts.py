"""A VM's interrupts: the controllers and timer inside KVM, lines, messages, and event fds in both directions."""

from __future__ import annotations

import struct

from kvmpy.kvm._ffi import ffi, ioctl, lib
from kvmpy.kvm.capabilities import KVM_CAP_SPLIT_IRQCHIP
from kvmpy.kvm.fd import KvmFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

KVM_IRQCHIP_PIC_MASTER: int = lib.KVM_IRQCHIP_PIC_MASTER
KVM_IRQCHIP_PIC_SLAVE: int = lib.KVM_IRQCHIP_PIC_SLAVE
KVM_IRQCHIP_IOAPIC: int = lib.KVM_IRQCHIP_IOAPIC

KVM_PIT_SPEAKER_DUMMY: int = lib.KVM_PIT_SPEAKER_DUMMY

# struct kvm_irq_routing and its entries, whose union cffi cannot describe: gsi, type, flags, three words of the union.
_ROUTING_HEADER = struct.Struct("<II")
_ROUTE = struct.Struct("<III4xIII20x")


class VmInterrupts(KvmFd):
    """The part of `Vm` that is about interrupts."""

    # --- controllers and timer

    def create_irqchip(self) -> None:
        """Two 8259 PICs, an IOAPIC, and a local APIC for each vCPU made later, all inside KVM (api.rst 4.24)."""
        ioctl(self.fd, "KVM_CREATE_IRQCHIP")

    def create_split_irqchip(self, pins: int = 24) -> None:
        """Only local APICs inside KVM; the IOAPIC of `pins` pins and the PICs are ours (api.rst 7.5).

        The guest's end of interrupt of a routed level interrupt is a `KVM_EXIT_IOAPIC_EOI`.
        """
        self._enable(KVM_CAP_SPLIT_IRQCHIP, (pins,), 0)

    def create_pit(self, *, speaker_dummy: bool = True) -> None:
        """An i8254 inside KVM; with `speaker_dummy` it answers port 0x61 too; after `create_irqchip` (api.rst 4.71)."""
        flags = KVM_PIT_SPEAKER_DUMMY if speaker_dummy else 0
        ioctl(self.fd, "KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *", {"flags": flags}))

    def irqchip(self, chip_id: int) -> bytes:
        """The state of one in-kernel chip (`KVM_IRQCHIP_*`), as KVM packs it (api.rst 4.26)."""
        chip = ffi.new("struct kvm_irqchip *", {"chip_id": chip_id})
        ioctl(self.fd, "KVM_GET_IRQCHIP", chip)
        return bytes(ffi.buffer(chip))

    def set_irqchip(self, state: bytes) -> None:
        """Puts back what `irqchip` gave (api.rst 4.27)."""
        self._set_bytes("KVM_SET_IRQCHIP", "struct kvm_irqchip *", state)

    def pit(self) -> bytes:
        """The state of the in-kernel PIT, `struct kvm_pit_state2` (api.rst 4.72)."""
        return self._get_bytes("KVM_GET_PIT2", "struct kvm_pit_state2 *")

    def set_pit(self, state: bytes) -> None:
        """Puts back what `pit` gave (api.rst 4.73)."""
        self._set_bytes("KVM_SET_PIT2", "struct kvm_pit_state2 *", state)

    def set_pit_reinject(self, on: bool) -> None:
        """Whether ticks of the in-kernel PIT that the guest missed are delivered late (api.rst 4.99)."""
        ioctl(self.fd, "KVM_REINJECT_CONTROL", ffi.new("struct kvm_reinject_control *", {"pit_reinject": on}))

    # --- raising interrupts

    def irq_line(self, gsi: int, level: bool) -> None:
        """Sets interrupt line `gsi` high or low (api.rst 4.25)."""
        self._line("KVM_IRQ_LINE", gsi, level)

    def irq_line_status(self, gsi: int, level: bool) -> int:
        """As `irq_line`: how many vCPUs it reached; 0 when it merged with one not yet taken, -1 when it was masked."""
        return self._line("KVM_IRQ_LINE_STATUS", gsi, level)

    def _line(self, call: str, gsi: int, level: bool) -> int:
        argument = ffi.new("struct kvm_irq_level *")
        argument.irq = gsi
        argument.level = level
        ioctl(self.fd, call, argument)
        return int(argument.status)

    def signal_msi(self, address: int, data: int) -> bool:
        """Sends a message-signalled interrupt; whether the guest took it (False: masked) (api.rst 4.71)."""
        message = {"address_lo": address & 0xFFFFFFFF, "address_hi": address >> 32, "data": data}
        return ioctl(self.fd, "KVM_SIGNAL_MSI", ffi.new("struct kvm_msi *", message)) > 0

    def set_gsi_routing(self, chips: Sequence[tuple[int, int, int]], msis: Sequence[tuple[int, int, int]] = ()) -> None:
        """Replaces the table that says where each GSI leads (api.rst 4.52).

        `chips` has (gsi, `KVM_IRQCHIP_*`, pin), `msis` has (gsi, address, data).
        """
        rows = [_ROUTE.pack(gsi, lib.KVM_IRQ_ROUTING_IRQCHIP, 0, chip, pin, 0) for gsi, chip, pin in chips]
        rows += [
            _ROUTE.pack(gsi, lib.KVM_IRQ_ROUTING_MSI, 0, address & 0xFFFFFFFF, address >> 32, data)
            for gsi, address, data in msis
        ]
        table = _ROUTING_HEADER.pack(len(rows), 0) + b"".join(rows)
        ioctl(self.fd, "KVM_SET_GSI_ROUTING", ffi.from_buffer(table))

    # --- event fds

    def irqfd(self, fd: int, gsi: int, *, resample_fd: int | None = None, deassign: bool = False) -> None:
        """Lets a write to eventfd `fd` pulse `gsi`; with `resample_fd`, raise it until the EOI (api.rst 4.75)."""
        flags = lib.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        argument = ffi.new("struct kvm_irqfd *", {"fd": fd, "gsi": gsi})
        if resample_fd is not None:
            flags |= lib.KVM_IRQFD_FLAG_RESAMPLE
            argument.resamplefd = resample_fd
        argument.flags = flags
        ioctl(self.fd, "KVM_IRQFD", argument)

    def ioeventfd(
        self, fd: int, address: int, length: int, *, pio: bool = False, match: int | None = None, deassign: bool = False
    ) -> None:
        """Lets a guest write of `length` bytes (0: any) at `address` signal eventfd `fd` instead of exiting.

        With `match`, only a write of that value (api.rst 4.59).
        """
        flags = lib.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH if match is not None else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        argument = {"datamatch": match or 0, "addr": address, "len": length, "fd": fd, "flags": flags}
        ioctl(self.fd, "KVM_IOEVENTFD", ffi.new("struct kvm_ioeventfd *", argument))

    def hyperv_eventfd(self, connection: int, fd: int, *, deassign: bool = False) -> None:
        """Lets the guest's Hyper-V call HvSignalEvent on `connection` signal eventfd `fd` (api.rst 4.113)."""
        flags = lib.KVM_HYPERV_EVENTFD_DEASSIGN if deassign else 0
        ioctl(self.fd, "KVM_HYPERV_EVENTFD", ffi.new("struct kvm_hyperv_eventfd *", (connection, fd, flags)))
