"""Typed views of `struct kvm_run` for exits that come only when they were asked for (api.rst, section 5).

`attach` is as in `kvmpy.kvm.exit_views`.
"""

from __future__ import annotations

from kvmpy.kvm._ffi import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KVM_MEMORY_EXIT_FLAG_PRIVATE: int = lib.KVM_MEMORY_EXIT_FLAG_PRIVATE
KVM_NOTIFY_CONTEXT_INVALID: int = lib.KVM_NOTIFY_CONTEXT_INVALID

KVM_EXIT_HYPERV_SYNIC: int = lib.KVM_EXIT_HYPERV_SYNIC
KVM_EXIT_HYPERV_HCALL: int = lib.KVM_EXIT_HYPERV_HCALL
KVM_EXIT_HYPERV_SYNDBG: int = lib.KVM_EXIT_HYPERV_SYNDBG

_LONG_MODE = 1


class HypercallExit:
    """A hypercall that `KVM_CAP_EXIT_HYPERCALL` leaves to us."""

    __slots__ = ("_call",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._call = ffi.addressof(run, "hypercall")

    @property
    def number(self) -> int:
        """Which hypercall: `KVM_HC_*`."""
        return int(self._call.nr)

    @property
    def arguments(self) -> tuple[int, ...]:
        """Its six arguments."""
        return tuple(self._call.args)

    @property
    def is_long_mode(self) -> bool:
        """Whether the guest made it in 64-bit mode."""
        return bool(self._call.longmode & _LONG_MODE)

    @property
    def result(self) -> int:
        """What the guest is to find in RAX."""
        return int(self._call.ret)

    @result.setter
    def result(self, value: int) -> None:
        self._call.ret = value % (1 << 64)


class TprAccessExit:
    """The guest touched its task priority register (`Vcpu.report_tpr_accesses`)."""

    __slots__ = ("_access",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._access = ffi.addressof(run, "tpr_access")

    @property
    def rip(self) -> int:
        """Where the guest did."""
        return int(self._access.rip)

    @property
    def is_write(self) -> bool:
        """Whether it wrote."""
        return bool(self._access.is_write)


class IoapicEoiExit:
    """The guest ended a level-triggered interrupt of an IOAPIC that is ours (`Vm.create_split_irqchip`)."""

    __slots__ = ("_eoi",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._eoi = ffi.addressof(run, "eoi")

    @property
    def vector(self) -> int:
        """The interrupt's vector."""
        return int(self._eoi.vector)


class HypervExit:
    """The guest set up, or called, what Hyper-V's interface leaves to us; `type` is `KVM_EXIT_HYPERV_*`."""

    __slots__ = ("_hyperv",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._hyperv = ffi.addressof(run, "hyperv")

    @property
    def type(self) -> int:
        """Which of the structs below is the one that is valid."""
        return int(self._hyperv.type)

    @property
    def synic(self) -> Any:
        """`KVM_EXIT_HYPERV_SYNIC`: `msr`, `control`, `evt_page`, `msg_page`."""
        return self._hyperv.u.synic

    @property
    def hcall(self) -> Any:
        """`KVM_EXIT_HYPERV_HCALL`: `input`, `params[2]`, and `result` for our answer."""
        return self._hyperv.u.hcall

    @property
    def syndbg(self) -> Any:
        """`KVM_EXIT_HYPERV_SYNDBG`: `msr`, `control`, `send_page`, `recv_page`, `pending_page`, and our `status`."""
        return self._hyperv.u.syndbg


class NotifyExit:
    """The guest opened no window for events for too long (`KVM_CAP_X86_NOTIFY_VMEXIT`)."""

    __slots__ = ("_notify",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._notify = ffi.addressof(run, "notify")

    @property
    def context_is_lost(self) -> bool:
        """Whether the vCPU's state is broken, so that it must not run again."""
        return bool(self._notify.flags & KVM_NOTIFY_CONTEXT_INVALID)


class MemoryFaultExit:
    """A page could not be mapped, as when it is private and should be shared (`KVM_CAP_MEMORY_FAULT_INFO`).

    `Vcpu.run` then raises `KvmError` with EFAULT or EHWPOISON, and this view tells where.
    """

    __slots__ = ("_fault",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._fault = ffi.cast("struct kvmpy_memory_fault *", ffi.addressof(run, "padding"))

    @property
    def address(self) -> int:
        """The first guest-physical address."""
        return int(self._fault.gpa)

    @property
    def size(self) -> int:
        """How many bytes from there on."""
        return int(self._fault.size)

    @property
    def flags(self) -> int:
        """`KVM_MEMORY_EXIT_FLAG_*`: private set means that the guest accessed it as private."""
        return int(self._fault.flags)


class UnknownExit:
    """The processor left the guest for a reason that KVM does not know."""

    __slots__ = ("_hw",)

    def attach(self, run: Any, _memory: memoryview) -> None:
        """See the module."""
        self._hw = ffi.addressof(run, "hw")

    @property
    def hardware_reason(self) -> int:
        """The processor's own code."""
        return int(self._hw.hardware_exit_reason)
