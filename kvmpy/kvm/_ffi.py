"""The one door to the C extension: `ffi`, `lib`, and `ioctl`, which turns -errno into `KvmError`."""

from __future__ import annotations

import errno

from kvmpy._kvm import ffi, lib
from kvmpy.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["check", "ffi", "ioctl", "ioctl_value", "lib"]

# What the usual refusals mean, and what to do about them: (ioctl, errno), and errno alone after that.
_ADVICE = {
    ("KVM_CREATE_VM", errno.ENOMEM): "the host is out of memory for virtual machines; stop some",
    ("KVM_CREATE_VM", errno.EBUSY): "another hypervisor holds the processor's virtualisation; stop it",
    ("KVM_CREATE_VCPU", errno.EINVAL): "ask for fewer vCPUs; `kvmpy doctor` shows how many this host allows",
    ("KVM_SET_USER_MEMORY_REGION", errno.ENOMEM): "ask for less memory",
}


def check(call: str, result: int) -> int:
    """`result`, or the `KvmError` that a negative one stands for."""
    if result < 0:
        raise KvmError(call, -result, _ADVICE.get((call, -result), ""))
    return result


def ioctl(fd: int, call: str, argument: Any = ffi.NULL) -> int:
    """The ioctl that the kernel's headers name `call`, with a pointer; its result, or `KvmError`."""
    return check(call, lib.kvmpy_ioctl(fd, getattr(lib, call), argument))


def ioctl_value(fd: int, call: str, value: int = 0) -> int:
    """The ioctl that the kernel's headers name `call`, with a number; its result, or `KvmError`."""
    return check(call, lib.kvmpy_ioctl_value(fd, getattr(lib, call), value))
