"""A device that lives in KVM (api.rst 4.79 and 4.80, Documentation/virt/kvm/devices)."""

from __future__ import annotations

import os

from kvmpy.kvm._ffi import ffi, ioctl


class Device:
    """The fd of an in-kernel device; `Vm.create_device` makes one.  A context manager."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the fd; twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def has_attr(self, group: int, attr: int) -> bool:
        """Whether the device knows this attribute."""
        argument = ffi.new("struct kvm_device_attr *", {"group": group, "attr": attr})
        try:
            ioctl(self.fd, "KVM_HAS_DEVICE_ATTR", argument)
        except OSError:
            return False
        return True

    def get_attr(self, group: int, attr: int, size: int = 8) -> bytes:
        """The value of an attribute that is `size` bytes long."""
        value = ffi.new("char[]", size)
        self._attr("KVM_GET_DEVICE_ATTR", group, attr, value)
        return bytes(ffi.buffer(value))

    def set_attr(self, group: int, attr: int, value: bytes = b"") -> None:
        """Sets an attribute to `value`, as long as the device's documentation has it."""
        self._attr("KVM_SET_DEVICE_ATTR", group, attr, ffi.new("char[]", value) if value else ffi.NULL)

    def _attr(self, call: str, group: int, attr: int, value: object) -> None:
        address = int(ffi.cast("uintptr_t", value))
        ioctl(self.fd, call, ffi.new("struct kvm_device_attr *", {"group": group, "attr": attr, "addr": address}))
