"""Typed views of `struct kvm_run`: what each exit that a machine lives with says (api.rst, section 5).

`attach` points a view at a `struct kvm_run` and the mapping that it lies in.
"""

from __future__ import annotations

from kvmpy.kvm._ffi import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# struct kvm_run's flag that says: data[1] and data[2] hold the instruction (lib.KVM_INTERNAL_ERROR_EMULATION).
_FLAG_INSTRUCTION_BYTES = 1

_MMIO_DATA: int = ffi.offsetof("struct kvm_run", "mmio", "data")


class IoExit:
    """`in`, `out`, and their string forms: `count` elements of `size` bytes at `port`."""

    __slots__ = ("_io", "_memory")

    def attach(self, run: Any, memory: memoryview) -> None:
        """See the module."""
        self._io = ffi.addressof(run, "io")
        self._memory = memory

    @property
    def port(self) -> int:
        """The port's number."""
        return int(self._io.port)

    @property
    def size(self) -> int:
        """Bytes in one element: 1, 2 or 4."""
        return int(self._io.size)

    @property
    def count(self) -> int:
        """How many elements: more than 1 for `rep ins` and `rep outs`."""
        return int(self._io.count)

    @property
    def is_write(self) -> bool:
        """Whether the guest wrote (`out`)."""
        return bool(self._io.direction)

    @property
    def data(self) -> memoryview:
        """The `size * count` bytes that were written, or that a read is to be answered with."""
        start = self._io.data_offset
        return self._memory[start : start + self._io.size * self._io.count]


class MmioExit:
    """A load or store where there is no RAM: 1 to 8 bytes at `address`."""

    __slots__ = ("_memory", "_mmio")

    def attach(self, run: Any, memory: memoryview) -> None:
        """See the module."""
        self._mmio = ffi.addressof(run, "mmio")
        self._memory = memory

    @property
    def address(self) -> int:
        """The guest-physical address."""
        return int(self._mmio.phys_addr)

    @property
    def is_write(self) -> bool:
        """Whether the guest wrote."""
        return bool(self._mmio.is_write)

    @property
    def data(self) -> memoryview:
        """The bytes that were written, or that a read is to be answered with."""
        return self._memory[_MMIO_DATA : _MMIO_DATA + min(self._mmio.len, 8)]


class MsrExit:
    """`rdmsr` or `wrmsr` that KVM leaves to us; `KVM_CAP_X86_USER_SPACE_MSR` says which."""

    __slots__ = ("_msr",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._msr = ffi.addressof(run, "msr")

    @property
    def index(self) -> int:
        """The MSR's number."""
        return int(self._msr.index)

    @property
    def reason(self) -> int:
        """Why KVM did not answer: `KVM_MSR_EXIT_REASON_*`."""
        return int(self._msr.reason)

    @property
    def value(self) -> int:
        """What the guest writes, or is to read."""
        return int(self._msr.data)

    @value.setter
    def value(self, value: int) -> None:
        self._msr.data = value

    def fault(self) -> None:
        """Answers with a general protection fault."""
        self._msr.error = 1


class InternalErrorExit:
    """KVM could not go on: `suberror` is `KVM_INTERNAL_ERROR_*`."""

    __slots__ = ("_internal",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._internal = ffi.addressof(run, "internal")

    @property
    def suberror(self) -> int:
        """Which error."""
        return int(self._internal.suberror)

    @property
    def data(self) -> tuple[int, ...]:
        """Up to 16 words that KVM adds; their meaning depends on `suberror`."""
        return tuple(self._internal.data[i] for i in range(min(self._internal.ndata, 16)))

    @property
    def instruction(self) -> bytes:
        """The bytes that KVM's emulator was given (up to 15, the instruction first), or none if it does not say."""
        words = self.data
        if (
            self.suberror != lib.KVM_INTERNAL_ERROR_EMULATION
            or len(words) < 3
            or not words[0] & _FLAG_INSTRUCTION_BYTES
        ):
            return b""
        packed = b"".join(word.to_bytes(8, "little") for word in words[1:3])
        return packed[1 : 1 + min(packed[0], 15)]


class SystemEventExit:
    """The guest asked for a shutdown or reset, or reported a crash, by a paravirtual way."""

    __slots__ = ("_event",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._event = ffi.addressof(run, "system_event")

    @property
    def type(self) -> int:
        """`KVM_SYSTEM_EVENT_*`."""
        return int(self._event.type)

    @property
    def data(self) -> tuple[int, ...]:
        """Up to 16 words that tell more; with `KVM_SYSTEM_EVENT_CRASH` and others they may be there."""
        return tuple(self._event.data[i] for i in range(min(self._event.ndata, 16)))


class FailEntryExit:
    """The processor refused the guest's state."""

    __slots__ = ("_fail",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._fail = ffi.addressof(run, "fail_entry")

    @property
    def reason(self) -> int:
        """The processor's own code (Intel: the exit reason; AMD: 0xffff...)."""
        return int(self._fail.hardware_entry_failure_reason)

    @property
    def cpu(self) -> int:
        """The host's processor that refused."""
        return int(self._fail.cpu)


class DebugExit:
    """A breakpoint or single step that was asked for with `Vcpu.set_guest_debug`."""

    __slots__ = ("_arch",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._arch = run.debug.arch

    @property
    def exception(self) -> int:
        """1 for #DB (step, hardware breakpoint), 3 for #BP (software breakpoint)."""
        return int(self._arch.exception)

    @property
    def pc(self) -> int:
        """The linear address of the instruction."""
        return int(self._arch.pc)

    @property
    def dr6(self) -> int:
        """Debug status: which condition was met."""
        return int(self._arch.dr6)

    @property
    def dr7(self) -> int:
        """Debug control, as of the event."""
        return int(self._arch.dr7)
