"""A device that lives in KVM (api.rst 4.79 and 4.80, Documentation/virt/kvm/devices)."""

from __future__ import annotations

from kvmpy.kvm._ffi import lib
from kvmpy.kvm.fd import KvmFd

KVM_CREATE_DEVICE_TEST: int = lib.KVM_CREATE_DEVICE_TEST
KVM_DEV_TYPE_VFIO: int = lib.KVM_DEV_TYPE_VFIO


class Device(KvmFd):
    """The fd of an in-kernel device; `Vm.create_device` makes one.  What it does is all in its attributes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
