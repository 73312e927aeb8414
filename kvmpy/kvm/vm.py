"""One virtual machine's fd: memory, interrupt controllers, event fds, clock, vCPUs (api.rst, section 4)."""

from __future__ import annotations

import errno

from kvmpy.errors import KvmError
from kvmpy.kvm._ffi import ffi, ioctl, ioctl_value, lib
from kvmpy.kvm.device import Device
from kvmpy.kvm.vcpu import Vcpu
from kvmpy.kvm.vm_interrupts import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY,
    VmInterrupts,
)
from kvmpy.kvm.vm_memory import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, VmMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "KVM_IRQCHIP_IOAPIC",
    "KVM_IRQCHIP_PIC_MASTER",
    "KVM_IRQCHIP_PIC_SLAVE",
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "KVM_MSR_EXIT_REASON_FILTER",
    "KVM_MSR_EXIT_REASON_INVAL",
    "KVM_MSR_EXIT_REASON_UNKNOWN",
    "KVM_MSR_FILTER_READ",
    "KVM_MSR_FILTER_WRITE",
    "KVM_PIT_SPEAKER_DUMMY",
    "KVM_PMU_EVENT_ALLOW",
    "KVM_PMU_EVENT_DENY",
    "MsrRange",
    "Vm",
]

KVM_MSR_FILTER_READ: int = lib.KVM_MSR_FILTER_READ
KVM_MSR_FILTER_WRITE: int = lib.KVM_MSR_FILTER_WRITE
KVM_MSR_EXIT_REASON_INVAL: int = lib.KVM_MSR_EXIT_REASON_INVAL
KVM_MSR_EXIT_REASON_UNKNOWN: int = lib.KVM_MSR_EXIT_REASON_UNKNOWN
KVM_MSR_EXIT_REASON_FILTER: int = lib.KVM_MSR_EXIT_REASON_FILTER

KVM_PMU_EVENT_ALLOW: int = lib.KVM_PMU_EVENT_ALLOW
KVM_PMU_EVENT_DENY: int = lib.KVM_PMU_EVENT_DENY


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


class Vm(VmMemory, VmInterrupts):
    """One virtual machine; `System.create_vm` makes it.  A context manager.

    All methods raise `KvmError` when KVM refuses.
    """

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd)
        self._vcpu_mmap_size = vcpu_mmap_size

    def check_extension(self, capability: int) -> int:
        """As `System.check_extension`, for this VM: some answers differ by VM (api.rst 4.4)."""
        return ioctl_value(self.fd, "KVM_CHECK_EXTENSION", capability)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> None:
        """Switches a capability on, with up to four arguments (api.rst 4.37, section 7)."""
        self._enable(capability, args, flags)

    # --- what Intel's processors need, time, filters

    def set_tss_address(self, address: int) -> None:
        """Where KVM may keep three pages for real mode on Intel, before the first vCPU (api.rst 4.36).

        Below 4 GiB, in no RAM.
        """
        ioctl_value(self.fd, "KVM_SET_TSS_ADDR", address)

    def set_identity_map_address(self, address: int) -> None:
        """Where KVM may keep one page for an identity map on Intel; as `set_tss_address` (api.rst 4.40)."""
        ioctl(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", address))

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Which vCPU is the bootstrap processor; before the first vCPU (api.rst 4.41)."""
        ioctl_value(self.fd, "KVM_SET_BOOT_CPU_ID", vcpu_id)

    def clock(self) -> int:
        """The guest's kvmclock, in nanoseconds (api.rst 4.29)."""
        data = ffi.new("struct kvm_clock_data *")
        ioctl(self.fd, "KVM_GET_CLOCK", data)
        return int(data.clock)

    def set_clock(self, nanoseconds: int) -> None:
        """Sets the guest's kvmclock (api.rst 4.30)."""
        ioctl(self.fd, "KVM_SET_CLOCK", ffi.new("struct kvm_clock_data *", {"clock": nanoseconds}))

    def tsc_khz(self) -> int:
        """The TSC frequency in kHz of vCPUs made later (api.rst 4.56)."""
        return ioctl_value(self.fd, "KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """Sets what `tsc_khz` reads; sure to be kept with `KVM_CAP_VM_TSC_CONTROL` (api.rst 4.55)."""
        ioctl_value(self.fd, "KVM_SET_TSC_KHZ", khz)

    def set_msr_filter(self, ranges: Sequence[MsrRange]) -> None:
        """Which MSR accesses KVM does not answer itself; all others are allowed.  No ranges: no filter.

        Where the guest then faults or exits is chosen with `KVM_CAP_X86_USER_SPACE_MSR` (api.rst 4.97).
        """
        if len(ranges) > lib.KVM_MSR_FILTER_MAX_RANGES:
            raise ValueError(f"an MSR filter has at most {lib.KVM_MSR_FILTER_MAX_RANGES} ranges, not {len(ranges)}")
        argument = ffi.new("struct kvm_msr_filter *")
        keep_alive = []
        for row, msrs in zip(argument.ranges, ranges, strict=False):
            bitmap = ffi.new("uint8_t[]", msrs.bitmap())
            keep_alive.append(bitmap)
            row.flags, row.nmsrs, row.base, row.bitmap = msrs.flags, msrs.count, msrs.base, bitmap
        ioctl(self.fd, "KVM_X86_SET_MSR_FILTER", argument)

    def set_pmu_event_filter(
        self, events: Sequence[int], action: int = KVM_PMU_EVENT_ALLOW, *, fixed_counters: int = 0, flags: int = 0
    ) -> None:
        """Allows the guest only these events of the performance counters, or denies them (api.rst 4.120).

        `fixed_counters` is a bitmap of the fixed counters that `action` is for.
        """
        argument = ffi.new("struct kvm_pmu_event_filter *", {"events": len(events)})
        argument.action, argument.nevents = action, len(events)
        argument.fixed_counter_bitmap, argument.flags = fixed_counters, flags
        for index, event in enumerate(events):
            argument.events[index] = event
        ioctl(self.fd, "KVM_SET_PMU_EVENT_FILTER", argument)

    # --- what is made from a VM

    def create_device(self, kind: int) -> Device:
        """An in-kernel device of type `KVM_DEV_TYPE_*` (api.rst 4.79)."""
        argument = ffi.new("struct kvm_create_device *", {"type": kind})
        ioctl(self.fd, "KVM_CREATE_DEVICE", argument)
        return Device(argument.fd)

    def can_create_device(self, kind: int) -> bool:
        """Whether KVM has in-kernel devices of this type; makes none (api.rst 4.79)."""
        argument = ffi.new("struct kvm_create_device *", {"type": kind, "flags": lib.KVM_CREATE_DEVICE_TEST})
        try:
            ioctl(self.fd, "KVM_CREATE_DEVICE", argument)
        except KvmError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def stats_fd(self) -> int:
        """A new fd with this VM's statistics, for `stats.read_stats`; the caller closes it (api.rst 4.133)."""
        return ioctl_value(self.fd, "KVM_GET_STATS_FD")

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """A new vCPU; its id is its APIC id (api.rst 4.7)."""
        return Vcpu(
            ioctl_value(self.fd, "KVM_CREATE_VCPU", vcpu_id), vcpu_id, self._vcpu_mmap_size, self._dirty_ring_entries
        )
