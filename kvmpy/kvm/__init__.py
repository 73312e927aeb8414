"""KVM's API, one class for each kind of fd: `System` makes a `Vm`, which makes `Vcpu`s and `Device`s.

    with System() as system, system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        ...
        reason = vcpu.run()

All constants keep the names of the kernel's headers.  A refusal is a `KvmError` that names the ioctl.
"""

from __future__ import annotations

from kvmpy.errors import KvmError
from kvmpy.kvm.cpuid import CpuidEntry
from kvmpy.kvm.device import Device
from kvmpy.kvm.system import System
from kvmpy.kvm.vcpu import Vcpu
from kvmpy.kvm.vm import MsrRange, Vm

__all__ = ["CpuidEntry", "Device", "KvmError", "MsrRange", "System", "Vcpu", "Vm"]
