"""Registers in shared memory: each exit leaves them there, and the next run takes them back, without an ioctl.

    synced = vcpu.sync_regs(KVM_SYNC_X86_REGS)
    vcpu.run()
    synced.regs.rax = synced.regs.rcx + 1
    synced.mark_dirty(KVM_SYNC_X86_REGS)
    vcpu.run()

api.rst, section 5 (`kvm_valid_regs`, `kvm_dirty_regs`) and `KVM_CAP_SYNC_REGS`.
"""

from __future__ import annotations

from kvmpy.kvm._ffi import ffi, ioctl, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.kvm.structs import Regs, Sregs, VcpuEvents

KVM_SYNC_X86_REGS: int = lib.KVM_SYNC_X86_REGS
KVM_SYNC_X86_SREGS: int = lib.KVM_SYNC_X86_SREGS
KVM_SYNC_X86_EVENTS: int = lib.KVM_SYNC_X86_EVENTS

_READ_BY = (
    (KVM_SYNC_X86_REGS, "KVM_GET_REGS", "regs"),
    (KVM_SYNC_X86_SREGS, "KVM_GET_SREGS", "sregs"),
    (KVM_SYNC_X86_EVENTS, "KVM_GET_VCPU_EVENTS", "events"),
)
_ALL = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS


class SyncRegs:
    """The registers that one vCPU shares; `Vcpu.sync_regs` makes it.

    Only what was asked for is kept up to date.  What is changed here counts from `mark_dirty` on, and wins over what
    `Vcpu.set_regs` and its like set before the next run.
    """

    __slots__ = ("_fd", "_run", "events", "regs", "sregs")

    def __init__(self, fd: int, run: Any) -> None:
        self.attach(fd, run)

    def attach(self, fd: int, run: Any) -> None:
        """Points the views at a `struct kvm_run`; a vCPU that is closed points them at an empty one."""
        self._fd = fd
        self._run = run
        shared = run.s.regs
        self.regs: Regs = shared.regs
        """The general registers, if `KVM_SYNC_X86_REGS` was asked for."""
        self.sregs: Sregs = shared.sregs
        """Segments and control registers, if `KVM_SYNC_X86_SREGS` was asked for."""
        self.events: VcpuEvents = shared.events
        """Pending exceptions and interrupts, if `KVM_SYNC_X86_EVENTS` was asked for."""

    @property
    def valid(self) -> int:
        """Which registers each exit leaves here: `KVM_SYNC_X86_*`."""
        return int(self._run.kvm_valid_regs)

    @property
    def dirty(self) -> int:
        """Which registers the next run takes from here; that run clears it."""
        return int(self._run.kvm_dirty_regs)

    def select(self, mask: int) -> None:
        """Chooses what each exit leaves here, and reads it once, so that it holds before the first exit too."""
        if mask & ~_ALL:
            raise ValueError(f"{mask:#x} has bits that are not of KVM_SYNC_X86_*")
        self._run.kvm_valid_regs = mask
        self.refresh()

    def refresh(self) -> None:
        """Reads what was asked for with ioctls: after `Vcpu.set_regs` and its like; drops unsaved changes."""
        self._run.kvm_dirty_regs = 0
        for bit, call, member in _READ_BY:
            if self._run.kvm_valid_regs & bit:
                ioctl(self._fd, call, ffi.addressof(self._run.s.regs, member))

    def mark_dirty(self, mask: int) -> None:
        """Has the next run take these registers from here."""
        if mask & ~self.valid:
            raise ValueError(f"{mask:#x} has registers that were not asked for ({self.valid:#x})")
        self._run.kvm_dirty_regs |= mask
