"""`/dev/kvm` itself: what this host's KVM can do, and the way to a new VM (api.rst, section 4)."""

from __future__ import annotations

import errno
import os

from kvmpy.errors import KvmError
from kvmpy.kvm._ffi import ffi, ioctl, ioctl_value, lib
from kvmpy.kvm.cpuid import CpuidEntry, empty_table, entries_of
from kvmpy.kvm.fd import KvmFd
from kvmpy.kvm.msrs import read_msr
from kvmpy.kvm.vm import Vm

KVM_API_VERSION: int = lib.KVM_API_VERSION

# Of `System.create_vm`; newer than the oldest headers that we build with.
KVM_X86_DEFAULT_VM = 0
KVM_X86_SW_PROTECTED_VM = 1

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


class System(KvmFd):
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

    def check_extension(self, capability: int) -> int:
        """What KVM says of a capability (`kvmpy.kvm.capabilities`): 0 for no, else 1 or its number (api.rst 4.4)."""
        return ioctl_value(self.fd, "KVM_CHECK_EXTENSION", capability)

    def vcpu_mmap_size(self) -> int:
        """How many bytes of a vCPU's fd are mapped to see `struct kvm_run` (api.rst 4.5)."""
        return ioctl_value(self.fd, "KVM_GET_VCPU_MMAP_SIZE")

    def supported_cpuid(self) -> list[CpuidEntry]:
        """The CPUID that a guest can be given on this host (api.rst 4.46)."""
        table = empty_table()
        ioctl(self.fd, "KVM_GET_SUPPORTED_CPUID", table)
        return entries_of(table)

    def emulated_cpuid(self) -> list[CpuidEntry]:
        """The CPUID features that KVM emulates though the processor lacks them (api.rst 4.88)."""
        table = empty_table()
        ioctl(self.fd, "KVM_GET_EMULATED_CPUID", table)
        return entries_of(table)

    def supported_hv_cpuid(self) -> list[CpuidEntry]:
        """The CPUID leaves with which KVM can pose as Hyper-V (api.rst 4.118)."""
        table = empty_table()
        ioctl(self.fd, "KVM_GET_SUPPORTED_HV_CPUID", table)
        return entries_of(table)

    def mce_capabilities(self) -> int:
        """The feature bits of IA32_MCG_CAP that a guest can be given (api.rst 4.104)."""
        return int(self._get("KVM_X86_GET_MCE_CAP_SUPPORTED", "uint64_t *")[0])

    def msr_indices(self) -> list[int]:
        """The MSRs that hold guest state: what a snapshot saves (api.rst 4.3)."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST")

    def msr_feature_indices(self) -> list[int]:
        """The MSRs that describe features which a guest can be given (api.rst 4.3)."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def feature_msrs(self) -> dict[int, int]:
        """What those of `msr_feature_indices` hold that KVM can read (api.rst 4.18)."""
        return {index: value for index in self.msr_feature_indices() if (value := read_msr(self.fd, index)) is not None}

    def _msr_list(self, call: str) -> list[int]:
        table = ffi.new("struct kvm_msr_list *", {"indices": 1024})
        table.nmsrs = 1024
        ioctl(self.fd, call, table)
        return [table.indices[i] for i in range(table.nmsrs)]

    def create_vm(self, kind: int = 0) -> Vm:
        """A new VM without memory and without vCPUs (api.rst 4.2).

        `kind` is one of the bits that `check_extension(KVM_CAP_VM_TYPES)` has set, such as `KVM_X86_SW_PROTECTED_VM`.
        """
        vcpu_mmap_size = self.vcpu_mmap_size()
        return Vm(ioctl_value(self.fd, "KVM_CREATE_VM", kind), vcpu_mmap_size)
