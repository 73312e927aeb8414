"""The guest's accesses to MSRs that KVM does not know: `MsrPolicy` answers and counts them."""

from __future__ import annotations

import threading

from kvmpy.kvm.capabilities import KVM_CAP_X86_USER_SPACE_MSR
from kvmpy.kvm.vm import KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vm
    from kvmpy.kvm.exit_views import MsrExit

FAULT = "fault"
ZERO = "zero"
POLICIES = (FAULT, ZERO)

# A guest can try 2^32 of them: so many are counted by themselves, the others together under OTHER.
MAX_COUNTED = 256
OTHER = -1


class MsrPolicy:
    """What becomes of accesses to unknown MSRs, and how many there were of each.

    With `FAULT` the guest takes a general protection fault, as on a processor that lacks the MSR; with `ZERO` reads
    give 0 and writes are swallowed.  `reads` and `writes` count by MSR.  Any vCPU's thread may call the methods.
    """

    __slots__ = ("_lock", "reads", "unknown", "writes")

    def __init__(self, unknown: str = FAULT) -> None:
        if unknown not in POLICIES:
            raise ValueError(f"{unknown!r} is none of {', '.join(POLICIES)}")
        self.unknown = unknown
        self.reads: dict[int, int] = {}
        self.writes: dict[int, int] = {}
        self._lock = threading.Lock()

    def install(self, vm: Vm) -> bool:
        """Has KVM leave unknown MSRs to us (KVM_EXIT_X86_RDMSR and WRMSR); whether it can: else it faults by itself.

        After all else that sets KVM_CAP_X86_USER_SPACE_MSR, since the last call wins: exits that an MSR filter makes
        stay enabled.
        """
        if not vm.check_extension(KVM_CAP_X86_USER_SPACE_MSR):
            return False
        vm.enable_cap(KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)
        return True

    def read(self, msr: MsrExit) -> None:
        """Answers a KVM_EXIT_X86_RDMSR."""
        self._count(self.reads, msr.index)
        if self.unknown == ZERO:
            msr.value = 0
        else:
            msr.fault()

    def write(self, msr: MsrExit) -> None:
        """Answers a KVM_EXIT_X86_WRMSR."""
        self._count(self.writes, msr.index)
        if self.unknown == FAULT:
            msr.fault()

    def summary(self) -> str:
        """What was counted, in one line: `MSRs that KVM does not know: 0x611 read 3 times`; empty for nothing."""
        with self._lock:
            parts = [
                f"{'others' if index == OTHER else hex(index)} {verb} {count} {'time' if count == 1 else 'times'}"
                for verb, table in (("read", self.reads), ("written", self.writes))
                for index, count in table.items()
            ]
        return f"MSRs that KVM does not know: {', '.join(parts)}" if parts else ""

    def _count(self, table: dict[int, int], index: int) -> None:
        with self._lock:
            if index not in table and len(table) >= MAX_COUNTED:
                index = OTHER
            table[index] = table.get(index, 0) + 1
