"""One virtual machine's fd: memory, interrupt controllers, event fds, clock, vCPUs (api.rst, section 4)."""

from __future__ import annotations

import os
import struct

from kvmpy.kvm._ffi import ffi, ioctl, ioctl_value, lib
from kvmpy.kvm.device import Device
from kvmpy.kvm.vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Sequence
    from typing import Any

KVM_MEM_LOG_DIRTY_PAGES: int = lib.KVM_MEM_LOG_DIRTY_PAGES
KVM_MEM_READONLY: int = lib.KVM_MEM_READONLY

KVM_IRQCHIP_PIC_MASTER: int = lib.KVM_IRQCHIP_PIC_MASTER
KVM_IRQCHIP_PIC_SLAVE: int = lib.KVM_IRQCHIP_PIC_SLAVE
KVM_IRQCHIP_IOAPIC: int = lib.KVM_IRQCHIP_IOAPIC

KVM_PIT_SPEAKER_DUMMY: int = lib.KVM_PIT_SPEAKER_DUMMY

KVM_MSR_FILTER_READ: int = lib.KVM_MSR_FILTER_READ
KVM_MSR_FILTER_WRITE: int = lib.KVM_MSR_FILTER_WRITE
KVM_MSR_EXIT_REASON_INVAL: int = lib.KVM_MSR_EXIT_REASON_INVAL
KVM_MSR_EXIT_REASON_UNKNOWN: int = lib.KVM_MSR_EXIT_REASON_UNKNOWN
KVM_MSR_EXIT_REASON_FILTER: int = lib.KVM_MSR_EXIT_REASON_FILTER

# struct kvm_irq_routing and its entries, whose union cffi cannot describe: gsi, type, flags, three words of the union.
_ROUTING_HEADER = struct.Struct("<II")
_ROUTE = struct.Struct("<III4xIII20x")


class MsrRange:
    """MSRs `base` to `base + count - 1`, of which a filter denies those in `denied` (indices).

    `flags`: for reads (`KVM_MSR_FILTER_READ`), writes (`KVM_MSR_FILTER_WRITE`) or both.
    """

    __slots__ = ("base", "count", "denied", "flags")

    def __init__(self, base: int, count: int, denied: Iterable[int], flags: int) -> None:
        self.base = base
        self.count = count
        self.denied = frozenset(denied)
        self.flags = flags

    def bitmap(self) -> bytes:
        """A bit for each MSR, set where access is allowed (api.rst 4.97)."""
        bits = (1 << self.count) - 1
        for index in self.denied:
            bits &= ~(1 << (index - self.base))
        return bits.to_bytes((self.count + 63) // 64 * 8, "little")


class Vm:
    """One virtual machine; `System.create_vm` makes it.  A context manager.

    All methods raise `KvmError` when KVM refuses.
    """

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        self.fd = fd
        self._vcpu_mmap_size = vcpu_mmap_size
        # KVM reads guest RAM through the host's mapping, so that must live as long as the slot does.
        self._buffers: dict[int, Any] = {}

    def __enter__(self) -> Vm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the fd; the machine goes when its vCPUs are closed too.  Twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._buffers.clear()

    def check_extension(self, capability: int) -> int:
        """As `System.check_extension`, for this VM: some answers differ by VM."""
        return ioctl_value(self.fd, "KVM_CHECK_EXTENSION", capability)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> None:
        """Switches a capability on, with up to four arguments (api.rst, section 7)."""
        words = (list(args) + [0] * 4)[:4]
        ioctl(self.fd, "KVM_ENABLE_CAP", ffi.new("struct kvm_enable_cap *", (capability, flags, words)))

    # --- memory

    def set_memory_region(self, slot: int, guest_address: int, buffer: mmap.mmap | memoryview, flags: int = 0) -> None:
        """Makes `buffer` (page-aligned, whole pages) guest RAM at `guest_address`; the same slot again changes it.

        The buffer is held until the slot is removed or the VM is closed.
        """
        mapping = ffi.from_buffer(buffer)
        self._set_region(slot, flags, guest_address, len(mapping), int(ffi.cast("uintptr_t", mapping)))
        self._buffers[slot] = mapping

    def remove_memory_region(self, slot: int) -> None:
        """Takes the RAM in `slot` from the guest."""
        self._set_region(slot, 0, 0, 0, 0)
        self._buffers.pop(slot, None)

    def _set_region(self, slot: int, flags: int, guest_address: int, size: int, address: int) -> None:
        region = ffi.new("struct kvm_userspace_memory_region *", (slot, flags, guest_address, size, address))
        ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", region)

    def dirty_log(self, slot: int, size: int) -> bytes:
        """Which pages of `slot` (`size` bytes long) the guest wrote since the last call, a bit a page; clears them."""
        bitmap = ffi.new("char[]", (size // 4096 + 63) // 64 * 8)
        log = ffi.new("struct kvm_dirty_log *")
        log.slot = slot
        log.dirty_bitmap = bitmap
        ioctl(self.fd, "KVM_GET_DIRTY_LOG", log)
        return bytes(ffi.buffer(bitmap))

    def register_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """Writes to this range are kept in the vCPU's ring and cause no exit (`Vcpu.drain_coalesced`)."""
        self._coalesced("KVM_REGISTER_COALESCED_MMIO", address, size, pio)

    def unregister_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """Undoes `register_coalesced`."""
        self._coalesced("KVM_UNREGISTER_COALESCED_MMIO", address, size, pio)

    def _coalesced(self, call: str, address: int, size: int, pio: bool) -> None:
        zone = ffi.new("struct kvm_coalesced_mmio_zone *", {"addr": address, "size": size})
        zone.pio = pio
        ioctl(self.fd, call, zone)

    # --- interrupts

    def create_irqchip(self) -> None:
        """Two 8259 PICs, an IOAPIC, and a local APIC for each vCPU made later, all inside KVM."""
        ioctl(self.fd, "KVM_CREATE_IRQCHIP")

    def create_pit(self, *, speaker_dummy: bool = True) -> None:
        """An i8254 inside KVM; with `speaker_dummy` it answers port 0x61 too.  After `create_irqchip`."""
        flags = KVM_PIT_SPEAKER_DUMMY if speaker_dummy else 0
        ioctl(self.fd, "KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *", {"flags": flags}))

    def irqchip(self, chip_id: int) -> bytes:
        """The state of one in-kernel chip (`KVM_IRQCHIP_*`), as KVM packs it."""
        chip = ffi.new("struct kvm_irqchip *", {"chip_id": chip_id})
        ioctl(self.fd, "KVM_GET_IRQCHIP", chip)
        return bytes(ffi.buffer(chip))

    def set_irqchip(self, state: bytes) -> None:
        """Puts back what `irqchip` gave."""
        self._set("KVM_SET_IRQCHIP", "struct kvm_irqchip *", state)

    def pit(self) -> bytes:
        """The state of the in-kernel PIT, `struct kvm_pit_state2`."""
        state = ffi.new("struct kvm_pit_state2 *")
        ioctl(self.fd, "KVM_GET_PIT2", state)
        return bytes(ffi.buffer(state))

    def set_pit(self, state: bytes) -> None:
        """Puts back what `pit` gave."""
        self._set("KVM_SET_PIT2", "struct kvm_pit_state2 *", state)

    def _set(self, call: str, struct: str, state: bytes) -> None:
        argument = ffi.new(struct)
        ffi.memmove(argument, state, min(len(state), ffi.sizeof(argument[0])))
        ioctl(self.fd, call, argument)

    def irq_line(self, gsi: int, level: bool) -> None:
        """Sets interrupt line `gsi` high or low."""
        argument = ffi.new("struct kvm_irq_level *")
        argument.irq = gsi
        argument.level = level
        ioctl(self.fd, "KVM_IRQ_LINE", argument)

    def irqfd(self, fd: int, gsi: int, *, resample_fd: int | None = None, deassign: bool = False) -> None:
        """Lets a write to eventfd `fd` pulse `gsi`; with `resample_fd`, raise it until the guest's EOI."""
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

        With `match`, only a write of that value.
        """
        flags = lib.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH if match is not None else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        argument = {"datamatch": match or 0, "addr": address, "len": length, "fd": fd, "flags": flags}
        ioctl(self.fd, "KVM_IOEVENTFD", ffi.new("struct kvm_ioeventfd *", argument))

    def signal_msi(self, address: int, data: int) -> bool:
        """Sends a message-signalled interrupt; whether the guest took it (False: masked)."""
        message = {"address_lo": address & 0xFFFFFFFF, "address_hi": address >> 32, "data": data}
        return ioctl(self.fd, "KVM_SIGNAL_MSI", ffi.new("struct kvm_msi *", message)) > 0

    def set_gsi_routing(self, chips: Sequence[tuple[int, int, int]], msis: Sequence[tuple[int, int, int]] = ()) -> None:
        """Replaces the table that says where each GSI leads.

        `chips` has (gsi, `KVM_IRQCHIP_*`, pin), `msis` has (gsi, address, data).
        """
        rows = [_ROUTE.pack(gsi, lib.KVM_IRQ_ROUTING_IRQCHIP, 0, chip, pin, 0) for gsi, chip, pin in chips]
        rows += [
            _ROUTE.pack(gsi, lib.KVM_IRQ_ROUTING_MSI, 0, address & 0xFFFFFFFF, address >> 32, data)
            for gsi, address, data in msis
        ]
        table = _ROUTING_HEADER.pack(len(rows), 0) + b"".join(rows)
        ioctl(self.fd, "KVM_SET_GSI_ROUTING", ffi.from_buffer(table))

    # --- what Intel's processors need, time, MSRs, devices, statistics

    def set_tss_address(self, address: int) -> None:
        """Where KVM may keep three pages for real mode on Intel: below 4 GiB, in no RAM, before the first vCPU."""
        ioctl_value(self.fd, "KVM_SET_TSS_ADDR", address)

    def set_identity_map_address(self, address: int) -> None:
        """Where KVM may keep one page for an identity map on Intel; as `set_tss_address`."""
        ioctl(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", address))

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Which vCPU is the bootstrap processor; before the first vCPU."""
        ioctl_value(self.fd, "KVM_SET_BOOT_CPU_ID", vcpu_id)

    def clock(self) -> int:
        """The guest's kvmclock, in nanoseconds."""
        data = ffi.new("struct kvm_clock_data *")
        ioctl(self.fd, "KVM_GET_CLOCK", data)
        return int(data.clock)

    def set_clock(self, nanoseconds: int) -> None:
        """Sets the guest's kvmclock."""
        ioctl(self.fd, "KVM_SET_CLOCK", ffi.new("struct kvm_clock_data *", {"clock": nanoseconds}))

    def set_msr_filter(self, ranges: Sequence[MsrRange]) -> None:
        """Which MSR accesses KVM does not answer itself; all others are allowed.  No ranges: no filter.

        Where the guest then faults or exits is chosen with `KVM_CAP_X86_USER_SPACE_MSR`.
        """
        argument = ffi.new("struct kvm_msr_filter *")
        keep_alive = []
        for row, msrs in zip(argument.ranges, ranges, strict=False):
            bitmap = ffi.new("uint8_t[]", msrs.bitmap())
            keep_alive.append(bitmap)
            row.flags, row.nmsrs, row.base, row.bitmap = msrs.flags, msrs.count, msrs.base, bitmap
        ioctl(self.fd, "KVM_X86_SET_MSR_FILTER", argument)

    def create_device(self, kind: int) -> Device:
        """An in-kernel device of type `KVM_DEV_TYPE_*`."""
        argument = ffi.new("struct kvm_create_device *", {"type": kind})
        ioctl(self.fd, "KVM_CREATE_DEVICE", argument)
        return Device(argument.fd)

    def stats_fd(self) -> int:
        """A new fd with this VM's statistics, for `kvmpy.kvm.stats.read_stats`; the caller closes it."""
        return ioctl_value(self.fd, "KVM_GET_STATS_FD")

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """A new vCPU; its id is its APIC id."""
        return Vcpu(ioctl_value(self.fd, "KVM_CREATE_VCPU", vcpu_id), vcpu_id, self._vcpu_mmap_size)
