"""Why KVM_RUN returned: the reasons, their names, and typed views of what each says (api.rst, section 5).

A view reads `struct kvm_run` at the time of each access and is made once a vCPU: an exit makes no object.
The answer to a guest's read is what its view's data holds when the vCPU runs again.  `attach` points a view at a
`struct kvm_run` and the mapping that it lies in; a vCPU that is closed points its views at an empty one.
"""

from __future__ import annotations

from kvmpy.kvm._ffi import lib
from kvmpy.kvm.exit_views import (
    DebugExit,
    FailEntryExit,
    InternalErrorExit,
    IoExit,
    MmioExit,
    MsrExit,
    SystemEventExit,
)
from kvmpy.kvm.rare_exit_views import (
    HypercallExit,
    HypervExit,
    IoapicEoiExit,
    MemoryFaultExit,
    NotifyExit,
    TprAccessExit,
    UnknownExit,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KVM_EXIT_UNKNOWN: int = lib.KVM_EXIT_UNKNOWN
KVM_EXIT_EXCEPTION: int = lib.KVM_EXIT_EXCEPTION
KVM_EXIT_IO: int = lib.KVM_EXIT_IO
KVM_EXIT_HYPERCALL: int = lib.KVM_EXIT_HYPERCALL
KVM_EXIT_DEBUG: int = lib.KVM_EXIT_DEBUG
KVM_EXIT_HLT: int = lib.KVM_EXIT_HLT
KVM_EXIT_MMIO: int = lib.KVM_EXIT_MMIO
KVM_EXIT_IRQ_WINDOW_OPEN: int = lib.KVM_EXIT_IRQ_WINDOW_OPEN
KVM_EXIT_SHUTDOWN: int = lib.KVM_EXIT_SHUTDOWN
KVM_EXIT_FAIL_ENTRY: int = lib.KVM_EXIT_FAIL_ENTRY
KVM_EXIT_INTR: int = lib.KVM_EXIT_INTR
KVM_EXIT_SET_TPR: int = lib.KVM_EXIT_SET_TPR
KVM_EXIT_TPR_ACCESS: int = lib.KVM_EXIT_TPR_ACCESS
KVM_EXIT_NMI: int = lib.KVM_EXIT_NMI
KVM_EXIT_INTERNAL_ERROR: int = lib.KVM_EXIT_INTERNAL_ERROR
KVM_EXIT_SYSTEM_EVENT: int = lib.KVM_EXIT_SYSTEM_EVENT
KVM_EXIT_IOAPIC_EOI: int = lib.KVM_EXIT_IOAPIC_EOI
KVM_EXIT_HYPERV: int = lib.KVM_EXIT_HYPERV
KVM_EXIT_X86_RDMSR: int = lib.KVM_EXIT_X86_RDMSR
KVM_EXIT_X86_WRMSR: int = lib.KVM_EXIT_X86_WRMSR
KVM_EXIT_DIRTY_RING_FULL: int = lib.KVM_EXIT_DIRTY_RING_FULL
KVM_EXIT_AP_RESET_HOLD: int = lib.KVM_EXIT_AP_RESET_HOLD
KVM_EXIT_X86_BUS_LOCK: int = lib.KVM_EXIT_X86_BUS_LOCK
KVM_EXIT_XEN: int = lib.KVM_EXIT_XEN
KVM_EXIT_NOTIFY: int = lib.KVM_EXIT_NOTIFY
KVM_EXIT_MEMORY_FAULT: int = lib.KVM_EXIT_MEMORY_FAULT

EXIT_NAMES: dict[int, str] = {
    value: name.removeprefix("KVM_EXIT_").lower() for name, value in list(globals().items()) if name[:9] == "KVM_EXIT_"
}
"""Exit reason → KVM's name for it in lower case: `io`, `mmio`, `hlt` ..."""

KVM_INTERNAL_ERROR_EMULATION: int = lib.KVM_INTERNAL_ERROR_EMULATION
KVM_INTERNAL_ERROR_SIMUL_EX: int = lib.KVM_INTERNAL_ERROR_SIMUL_EX
KVM_INTERNAL_ERROR_DELIVERY_EV: int = lib.KVM_INTERNAL_ERROR_DELIVERY_EV

KVM_RUN_X86_SMM: int = lib.KVM_RUN_X86_SMM
KVM_RUN_X86_BUS_LOCK: int = lib.KVM_RUN_X86_BUS_LOCK

KVM_SYSTEM_EVENT_SHUTDOWN: int = lib.KVM_SYSTEM_EVENT_SHUTDOWN
KVM_SYSTEM_EVENT_RESET: int = lib.KVM_SYSTEM_EVENT_RESET
KVM_SYSTEM_EVENT_CRASH: int = lib.KVM_SYSTEM_EVENT_CRASH


class Exit:
    """All views of one vCPU's `struct kvm_run`; the one that its `reason` names is the one that is valid."""

    __slots__ = (
        "_run",
        "debug",
        "fail_entry",
        "hypercall",
        "hyperv",
        "internal_error",
        "io",
        "ioapic_eoi",
        "memory_fault",
        "mmio",
        "msr",
        "notify",
        "system_event",
        "tpr_access",
        "unknown",
    )

    def __init__(self) -> None:
        self.io = IoExit()
        self.mmio = MmioExit()
        self.msr = MsrExit()
        self.internal_error = InternalErrorExit()
        self.system_event = SystemEventExit()
        self.fail_entry = FailEntryExit()
        self.debug = DebugExit()
        self.hypercall = HypercallExit()
        self.tpr_access = TprAccessExit()
        self.ioapic_eoi = IoapicEoiExit()
        self.hyperv = HypervExit()
        self.notify = NotifyExit()
        self.memory_fault = MemoryFaultExit()
        self.unknown = UnknownExit()

    def attach(self, run: Any, memory: memoryview) -> None:
        """See the module."""
        self._run = run
        for name in self.__slots__[1:]:
            getattr(self, name).attach(run, memory)

    @property
    def reason(self) -> int:
        """`KVM_EXIT_*` of the last exit."""
        return int(self._run.exit_reason)

    @property
    def name(self) -> str:
        """KVM's name of the reason in lower case, or its number."""
        return EXIT_NAMES.get(self.reason, str(self.reason))
