"""One virtual processor's fd: running it, stopping it, and what it shares with us while it runs (api.rst 4.10, 5)."""

from __future__ import annotations

import mmap
import os
import struct
from functools import partial

from kvmpy.errors import KvmError, StateError
from kvmpy.kvm._ffi import check, ffi, ioctl, lib
from kvmpy.kvm.exits import Exit
from kvmpy.kvm.vcpu_state import (
    KVM_GUESTDBG_BLOCKIRQ,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED,
    VcpuState,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvmpy.kvm.dirty_ring import DirtyRing
    from kvmpy.kvm.sync_regs import SyncRegs

__all__ = [
    "KVM_GUESTDBG_BLOCKIRQ",
    "KVM_GUESTDBG_ENABLE",
    "KVM_GUESTDBG_SINGLESTEP",
    "KVM_GUESTDBG_USE_HW_BP",
    "KVM_GUESTDBG_USE_SW_BP",
    "KVM_MP_STATE_HALTED",
    "KVM_MP_STATE_RUNNABLE",
    "KVM_MP_STATE_UNINITIALIZED",
    "Vcpu",
]

# The ring of coalesced writes: two counters, then entries of address, length, "is a port" and 8 bytes of data.
_COALESCED_RING_HEADER = 8
_COALESCED_ENTRY = 24

# struct kvm_signal_mask: the length of the kernel's set of signals in bytes, and the set.
_SIGNALS = 64
_SIGNAL_MASK = struct.Struct("<IQ")

# What stands in for a struct kvm_run that may be gone.
_NOWHERE = ffi.new("struct kvm_run *")


class Vcpu(VcpuState):
    """One virtual processor; `Vm.create_vcpu` makes it.  A context manager.

    One thread runs it; others may only `kick`.  All methods raise `KvmError` when KVM refuses.
    """

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int, dirty_ring_entries: int = 0) -> None:
        self.fd = fd
        self.id = vcpu_id
        self._tid = 0
        self._sync: SyncRegs | None = None
        self._dirty_ring_entries = dirty_ring_entries
        try:
            self._map = mmap.mmap(fd, mmap_size, flags=mmap.MAP_SHARED)
        except OSError as error:
            os.close(fd)
            raise KvmError("mmap", error.errno or 0) from error
        self._mapping = ffi.from_buffer(self._map)
        self._run = ffi.cast("struct kvm_run *", self._mapping)
        self.memory = memoryview(self._map)
        """All of `struct kvm_run` with the pages behind it, which hold the data of port exits."""
        self.exit = Exit()
        """Views of why the last `run` returned."""
        self.exit.attach(self._run, self.memory)
        self.enter: Callable[[], int] = partial(lib.kvmpy_vcpu_run, fd, self._run)
        """`run` without its check: a negative result is -errno.  For loops that look at the result anyway."""

    def close(self) -> None:
        """Closes the fd and its mapping; twice is fine.  Views of exits are empty from then on."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        # Whoever still has a pointer must find memory behind it, and the mapping holds the vCPU as its fd did.
        self._run = ffi.new("struct kvm_run *")
        if self._sync:
            self._sync.attach(-1, self._run)
        self.enter = partial(lib.kvmpy_vcpu_run, -1, self._run)
        self.exit.attach(self._run, memoryview(b""))
        self.memory.release()
        ffi.release(self._mapping)
        try:
            self._map.close()
        except BufferError:
            pass  # Somebody holds a view of an exit's data: the mapping goes with it.

    # --- running

    def run(self) -> int:
        """Lets the guest run until it needs us: `KVM_EXIT_*`; `KVM_EXIT_INTR` after a kick or signal (api.rst 4.10)."""
        return check("KVM_RUN", self.enter())

    def adopt_thread(self, tid: int) -> None:
        """Says which thread (its native id) runs this vCPU from now on, so that `kick` can reach it; 0 for none."""
        check("sigaction", lib.kvmpy_kick_install())
        self._tid = tid

    def kick(self) -> None:
        """Ends the KVM_RUN that is under way in another thread, or the next one, with `KVM_EXIT_INTR`."""
        # One that is not answered yet counts for this one too.  Real-time signals queue up: a thread that is kicked
        # faster than it can take them would do nothing else any more.
        if self._run.immediate_exit:
            return
        # In C, where other threads run meanwhile, `close` might take the memory away.
        self._run.immediate_exit = 1
        if self._tid:
            lib.kvmpy_kick(self._tid, _NOWHERE)

    @property
    def immediate_exit(self) -> bool:
        """Whether the next `run` only completes what is pending, and returns; a kick sets it, its answer clears it."""
        return bool(self._run.immediate_exit)

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self._run.immediate_exit = value

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Which signals are blocked while this vCPU's thread is in KVM_RUN; None: as outside it (api.rst 4.21)."""
        if blocked is None:
            ioctl(self.fd, "KVM_SET_SIGNAL_MASK")
            return
        mask = 0
        for number in blocked:
            if not 1 <= number <= _SIGNALS:
                raise ValueError(f"{number} is not a signal's number")
            mask |= 1 << (number - 1)
        argument = _SIGNAL_MASK.pack(_SIGNALS // 8, mask)
        ioctl(self.fd, "KVM_SET_SIGNAL_MASK", ffi.from_buffer(argument))

    def sync_regs(self, mask: int) -> SyncRegs:
        """Has each exit leave registers where they are read without an ioctl: see `kvmpy.kvm.sync_regs`.

        `mask` is of `KVM_SYNC_X86_*`, within what `check_extension(KVM_CAP_SYNC_REGS)` says; 0 ends it.
        """
        from kvmpy.kvm.sync_regs import SyncRegs

        if self._sync is None:
            self._sync = SyncRegs(self.fd, self._run)
        self._sync.select(mask)
        return self._sync

    def dirty_ring(self) -> DirtyRing:
        """The ring of pages that this vCPU wrote (`Vm.enable_dirty_rings`); the caller closes it (api.rst 8.29)."""
        from kvmpy.kvm.dirty_ring import DirtyRing

        if not self._dirty_ring_entries:
            raise StateError("this vCPU has no dirty ring: call Vm.enable_dirty_rings before it is made")
        return DirtyRing(self.fd, self._dirty_ring_entries)

    @property
    def request_interrupt_window(self) -> bool:
        """Whether KVM_RUN is to return when the guest can take an interrupt; without an in-kernel irqchip."""
        return bool(self._run.request_interrupt_window)

    @request_interrupt_window.setter
    def request_interrupt_window(self, value: bool) -> None:
        self._run.request_interrupt_window = value

    @property
    def ready_for_interrupt(self) -> bool:
        """Whether `interrupt` can queue one now, as of the last exit; without an in-kernel irqchip."""
        return bool(self._run.ready_for_interrupt_injection)

    @property
    def interrupts_enabled(self) -> bool:
        """The guest's IF, as of the last exit."""
        return bool(self._run.if_flag)

    @property
    def run_flags(self) -> int:
        """`KVM_RUN_X86_*`: what else was so at the last exit, such as a bus lock."""
        return int(self._run.flags)

    @property
    def cr8(self) -> int:
        """The task priority as of the last exit, and for the next `run` without an in-kernel irqchip."""
        return int(self._run.cr8)

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._run.cr8 = value

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE as of the last exit."""
        return int(self._run.apic_base)

    def drain_coalesced(self, page: int) -> list[tuple[int, bytes, bool]]:
        """Takes what the guest wrote to coalesced ranges: (address, data, is a port), oldest first.

        `page` is what `check_extension(KVM_CAP_COALESCED_MMIO)` says: where the ring lies, in pages.
        """
        start = page * mmap.PAGESIZE
        ring = ffi.cast("struct kvm_coalesced_mmio_ring *", ffi.from_buffer(self.memory[start:]))
        entries = start + _COALESCED_RING_HEADER
        room = (mmap.PAGESIZE - _COALESCED_RING_HEADER) // _COALESCED_ENTRY
        taken = []
        while ring.first != ring.last:
            entry = self.memory[entries + ring.first % room * _COALESCED_ENTRY :][:_COALESCED_ENTRY]
            length = int.from_bytes(entry[8:12], "little")
            is_port = int.from_bytes(entry[12:16], "little") == 1
            taken.append((int.from_bytes(entry[:8], "little"), bytes(entry[16 : 16 + min(length, 8)]), is_port))
            ring.first = (ring.first + 1) % room
        return taken

    def pre_fault(self, address: int, size: int) -> tuple[int, int]:
        """Maps guest-physical pages before the guest touches them (api.rst 4.143): what remains, (address, size)."""
        argument = ffi.new("struct kvm_pre_fault_memory *")
        argument.gpa, argument.size = address, size
        ioctl(self.fd, "KVM_PRE_FAULT_MEMORY", argument)
        return int(argument.gpa), int(argument.size)

    def port_write_loop(self, exits: int) -> int:
        """Runs until the guest has written `exits` times to ports, all in C and without a look at the data.

        How many there were: fewer when another exit came.  This is what Python's cost of an exit is measured against.
        """
        return check("KVM_RUN", lib.kvmpy_pio_write_loop(self.fd, self._run, exits))
