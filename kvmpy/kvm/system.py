"""`/dev/kvm` itself: what this host's KVM can do, and the way to a new VM (api.rst, sections 4.1 to 4.4)."""

from __future__ import annotations

import errno
import os

from kvmpy.errors import KvmError
from kvmpy.kvm._ffi import ffi, ioctl, ioctl_value, lib
from kvmpy.kvm.cpuid import CpuidEntry, empty_table, entries_of
from kvmpy.kvm.vm import Vm

KVM_API_VERSION: int = lib.KVM_API_VERSION

DEFAULT_PATH = "/dev/kvm"

_OPEN_ADVICE = {
    errno.ENOENT: (
        "KVM is not there: run `sudo modprobe kvm_intel` (or kvm_amd); if that fails, switch virtualisation (VT-x, "
        "AMD-V) on in the firmware's settings, or, inside a virtual machine, nested virtualisation on its host"
    ),
    errno.EACCES: (
        "you may not use KVM: run `sudo usermod -aG kvm $USER` and log in again; the device belongs to that group "
        'by the udev rule KERNEL=="kvm", GROUP="kvm", MODE="0660"'
    ),
    errno.ENODEV: "the kvm module found no virtualisation on this processor: switch VT-x or AMD-V on, or nesting",
}
_OPEN_ADVICE[errno.EPERM] = _OPEN_ADVICE[errno.EACCES]
_OPEN_ADVICE[errno.ENXIO] = _OPEN_ADVICE[errno.ENODEV]


class System:
    """The open `/dev/kvm`.

    Raises `KvmError`, with what to do about it, when the device cannot be opened or speaks another API version.
    Use it as a context manager, or call `close`; VMs made from it live on.
    """

    def __init__(self, path: str = DEFAULT_PATH) -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            number = error.errno or 0
            raise KvmError(f"open {path}", number, _OPEN_ADVICE.get(number, "")) from None
        try:
            version = ioctl_value(self.fd, "KVM_GET_API_VERSION")
            if version != KVM_API_VERSION:
                raise KvmError("KVM_GET_API_VERSION", errno.EPROTO, f"it speaks version {version}, not 12")
        except KvmError:
            self.close()
            raise

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the fd; twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def check_extension(self, capability: int) -> int:
        """What KVM says of a capability (`kvmpy.kvm.capabilities`): 0 for no, else 1 or a number that it has."""
        return ioctl_value(self.fd, "KVM_CHECK_EXTENSION", capability)

    def vcpu_mmap_size(self) -> int:
        """How many bytes of a vCPU's fd are mapped to see `struct kvm_run`."""
        return ioctl_value(self.fd, "KVM_GET_VCPU_MMAP_SIZE")

    def supported_cpuid(self) -> list[CpuidEntry]:
        """The CPUID that a guest can be given on this host."""
        table = empty_table()
        ioctl(self.fd, "KVM_GET_SUPPORTED_CPUID", table)
        return entries_of(table)

    def emulated_cpuid(self) -> list[CpuidEntry]:
        """The CPUID features that KVM emulates though the processor lacks them."""
        table = empty_table()
        ioctl(self.fd, "KVM_GET_EMULATED_CPUID", table)
        return entries_of(table)

    def msr_indices(self) -> list[int]:
        """The MSRs that hold guest state: what a snapshot saves."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST")

    def msr_feature_indices(self) -> list[int]:
        """The MSRs that describe features of the host's processor."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def _msr_list(self, call: str) -> list[int]:
        table = ffi.new("struct kvm_msr_list *", {"indices": 1024})
        table.nmsrs = 1024
        ioctl(self.fd, call, table)
        return [table.indices[i] for i in range(table.nmsrs)]

    def create_vm(self) -> Vm:
        """A new VM without memory and without vCPUs."""
        return Vm(ioctl_value(self.fd, "KVM_CREATE_VM"), self.vcpu_mmap_size())
