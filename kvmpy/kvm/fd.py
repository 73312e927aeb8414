"""What all of KVM's file descriptors have in common: they are closed once, and most have attributes (api.rst 4.80)."""

from __future__ import annotations

import errno
import os

from kvmpy.errors import KvmError
from kvmpy.kvm._ffi import ffi, ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

# EPERM: this kind of fd has no attributes at all.
_NO_SUCH_ATTRIBUTE = (errno.ENXIO, errno.ENOTTY, errno.EINVAL, errno.EPERM)


class KvmFd:
    """An fd of KVM's, its attributes, and the ways in which structs travel through it.  A context manager."""

    fd: int
    """The file descriptor; -1 once it is closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the fd; twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # --- attributes: numbered values that documentation knows by group (Documentation/virt/kvm/devices)

    def has_attr(self, group: int, attr: int) -> bool:
        """Whether it has this attribute (api.rst 4.81)."""
        argument = ffi.new("struct kvm_device_attr *", {"group": group, "attr": attr})
        try:
            ioctl(self.fd, "KVM_HAS_DEVICE_ATTR", argument)
        except KvmError as error:
            if error.errno in _NO_SUCH_ATTRIBUTE:
                return False
            raise
        return True

    def get_attr(self, group: int, attr: int, size: int = 8) -> bytes:
        """The value of an attribute that is `size` bytes long (api.rst 4.80)."""
        value = ffi.new("char[]", size)
        self._attr("KVM_GET_DEVICE_ATTR", group, attr, value)
        return bytes(ffi.buffer(value))

    def set_attr(self, group: int, attr: int, value: bytes = b"") -> None:
        """Sets an attribute to `value`, as long as its documentation has it (api.rst 4.80)."""
        self._attr("KVM_SET_DEVICE_ATTR", group, attr, ffi.new("char[]", value) if value else ffi.NULL)

    def _attr(self, call: str, group: int, attr: int, value: object) -> None:
        address = int(ffi.cast("uintptr_t", value))
        ioctl(self.fd, call, ffi.new("struct kvm_device_attr *", {"group": group, "attr": attr, "addr": address}))

    # --- structs

    def _get(self, call: str, struct: str) -> Any:
        value = ffi.new(struct)
        ioctl(self.fd, call, value)
        return value

    def _get_bytes(self, call: str, struct: str) -> bytes:
        return bytes(ffi.buffer(self._get(call, struct)))

    def _set_bytes(self, call: str, struct: str, state: bytes) -> None:
        value = ffi.new(struct)
        ffi.memmove(value, state, min(len(state), ffi.sizeof(value[0])))
        ioctl(self.fd, call, value)

    def _enable(self, capability: int, args: tuple[int, ...], flags: int) -> None:
        words = (list(args) + [0] * 4)[:4]
        ioctl(self.fd, "KVM_ENABLE_CAP", ffi.new("struct kvm_enable_cap *", (capability, flags, words)))
