"""One MSR at a time, through whatever fd has them: a vCPU's, or `/dev/kvm` for those that describe features."""

from __future__ import annotations

from kvmpy.kvm._ffi import ffi, ioctl


def read_msr(fd: int, index: int) -> int | None:
    """The value of an MSR, or None when KVM cannot read it."""
    table = ffi.new("struct kvm_msrs *", {"entries": 1})
    table.nmsrs = 1
    table.entries[0].index = index
    return int(table.entries[0].data) if ioctl(fd, "KVM_GET_MSRS", table) == 1 else None


def write_msr(fd: int, index: int, value: int) -> bool:
    """Sets an MSR; False when KVM refused."""
    table = ffi.new("struct kvm_msrs *", {"entries": 1})
    table.nmsrs = 1
    table.entries[0].index, table.entries[0].data = index, value
    return ioctl(fd, "KVM_SET_MSRS", table) == 1
