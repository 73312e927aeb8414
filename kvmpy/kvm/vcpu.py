"""One virtual processor's fd: running it, stopping it, and all of its state (api.rst, section 4).

State that code looks into comes as a struct of `kvmpy.kvm.structs`, read now and written back with the `set_`
method beside it; state that is only kept comes as bytes.
"""

from __future__ import annotations

import mmap
import os
from functools import partial

from kvmpy.kvm._ffi import check, ffi, ioctl, ioctl_value, lib
from kvmpy.kvm.cpuid import CpuidEntry, empty_table, entries_of, table_of
from kvmpy.kvm.exits import Exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from kvmpy.kvm.structs import DebugRegs, Fpu, Regs, Sregs, VcpuEvents

KVM_GUESTDBG_ENABLE: int = lib.KVM_GUESTDBG_ENABLE
KVM_GUESTDBG_SINGLESTEP: int = lib.KVM_GUESTDBG_SINGLESTEP
KVM_GUESTDBG_USE_SW_BP: int = lib.KVM_GUESTDBG_USE_SW_BP
KVM_GUESTDBG_USE_HW_BP: int = lib.KVM_GUESTDBG_USE_HW_BP
KVM_GUESTDBG_BLOCKIRQ: int = lib.KVM_GUESTDBG_BLOCKIRQ

KVM_MP_STATE_RUNNABLE: int = lib.KVM_MP_STATE_RUNNABLE
KVM_MP_STATE_UNINITIALIZED: int = lib.KVM_MP_STATE_UNINITIALIZED
KVM_MP_STATE_HALTED: int = lib.KVM_MP_STATE_HALTED

# The ring of coalesced writes: two counters, then entries of address, length, "is a port" and 8 bytes of data.
_COALESCED_RING_HEADER = 8
_COALESCED_ENTRY = 24


class Vcpu:
    """One virtual processor; `Vm.create_vcpu` makes it.  A context manager.

    One thread runs it; others may only `kick`.  All methods raise `KvmError` when KVM refuses.
    """

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int) -> None:
        self.fd = fd
        self.id = vcpu_id
        self._tid = 0
        self._map = mmap.mmap(fd, mmap_size, flags=mmap.MAP_SHARED)
        self._mapping = ffi.from_buffer(self._map)
        self._run = ffi.cast("struct kvm_run *", self._mapping)
        self.memory = memoryview(self._map)
        """All of `struct kvm_run` with the pages behind it, which hold the data of port exits."""
        self.exit = Exit()
        """Views of why the last `run` returned."""
        self.exit.attach(self._run, self.memory)
        self.enter: Callable[[], int] = partial(lib.kvmpy_vcpu_run, fd, self._run)
        """`run` without its check: a negative result is -errno.  For loops that look at the result anyway."""

    def __enter__(self) -> Vcpu:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the fd and its mapping; twice is fine.  Views of exits are empty from then on."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        # Whoever still has a pointer must find memory behind it, and the mapping holds the vCPU as its fd did.
        self._run = ffi.new("struct kvm_run *")
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
        """Lets the guest run until it needs us: `KVM_EXIT_*`; `KVM_EXIT_INTR` after a kick or signal."""
        return check("KVM_RUN", self.enter())

    def adopt_thread(self, tid: int) -> None:
        """Says which thread (its native id) runs this vCPU from now on, so that `kick` can reach it; 0 for none."""
        check("sigaction", lib.kvmpy_kick_install())
        self._tid = tid

    def kick(self) -> None:
        """Ends the KVM_RUN that is under way in another thread, or the next one, with `KVM_EXIT_INTR`."""
        self._run.immediate_exit = 1
        if self._tid:
            lib.kvmpy_kick(self._tid, self._run)

    @property
    def immediate_exit(self) -> bool:
        """Whether the next `run` only completes what is pending, and returns; a kick sets it, its answer clears it."""
        return bool(self._run.immediate_exit)

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self._run.immediate_exit = value

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

    def port_write_loop(self, exits: int) -> int:
        """Runs until the guest has written `exits` times to ports, all in C and without a look at the data.

        How many there were: fewer when another exit came.  This is what Python's cost of an exit is measured against.
        """
        return check("KVM_RUN", lib.kvmpy_pio_write_loop(self.fd, self._run, exits))

    # --- general, special and floating-point registers

    def regs(self) -> Regs:
        """The general registers."""
        return self._get("KVM_GET_REGS", "struct kvm_regs *")

    def set_regs(self, regs: Regs) -> None:
        """Sets the general registers."""
        ioctl(self.fd, "KVM_SET_REGS", regs)

    def sregs(self) -> Sregs:
        """Segments, descriptor tables, control registers."""
        return self._get("KVM_GET_SREGS", "struct kvm_sregs *")

    def set_sregs(self, sregs: Sregs) -> None:
        """Sets what `sregs` reads; KVM refuses combinations that no processor has."""
        ioctl(self.fd, "KVM_SET_SREGS", sregs)

    def fpu(self) -> Fpu:
        """x87 and SSE registers."""
        return self._get("KVM_GET_FPU", "struct kvm_fpu *")

    def set_fpu(self, fpu: Fpu) -> None:
        """Sets x87 and SSE registers."""
        ioctl(self.fd, "KVM_SET_FPU", fpu)

    def events(self) -> VcpuEvents:
        """Exceptions, interrupts and NMIs that are pending or being delivered."""
        return self._get("KVM_GET_VCPU_EVENTS", "struct kvm_vcpu_events *")

    def set_events(self, events: VcpuEvents) -> None:
        """Sets what `events` reads, as far as its `flags` say."""
        ioctl(self.fd, "KVM_SET_VCPU_EVENTS", events)

    def debug_regs(self) -> DebugRegs:
        """DR0 to DR3, DR6, DR7."""
        return self._get("KVM_GET_DEBUGREGS", "struct kvm_debugregs *")

    def set_debug_regs(self, registers: DebugRegs) -> None:
        """Sets DR0 to DR3, DR6, DR7."""
        ioctl(self.fd, "KVM_SET_DEBUGREGS", registers)

    # --- state that is kept, not looked into

    def sregs2(self) -> bytes:
        """`struct kvm_sregs2`: as `sregs`, with the PAE page-directory pointers."""
        return self._get_bytes("KVM_GET_SREGS2", "struct kvm_sregs2 *")

    def set_sregs2(self, state: bytes) -> None:
        """Puts back what `sregs2` gave."""
        self._set_bytes("KVM_SET_SREGS2", "struct kvm_sregs2 *", state)

    def lapic(self) -> bytes:
        """The local APIC's register page (1 KiB)."""
        return self._get_bytes("KVM_GET_LAPIC", "struct kvm_lapic_state *")

    def set_lapic(self, state: bytes) -> None:
        """Puts back what `lapic` gave."""
        self._set_bytes("KVM_SET_LAPIC", "struct kvm_lapic_state *", state)

    def xsave(self, size: int = 4096) -> bytes:
        """The XSAVE area; `size` is what `check_extension(KVM_CAP_XSAVE2)` says, 4096 where that is 0."""
        area = ffi.new("char[]", max(size, 4096))
        ioctl(self.fd, "KVM_GET_XSAVE2" if size > 4096 else "KVM_GET_XSAVE", area)
        return bytes(ffi.buffer(area))

    def set_xsave(self, state: bytes) -> None:
        """Puts back what `xsave` gave."""
        ioctl(self.fd, "KVM_SET_XSAVE", ffi.new("char[]", state.ljust(4096, b"\0")))

    def xcrs(self) -> bytes:
        """`struct kvm_xcrs`: XCR0."""
        return self._get_bytes("KVM_GET_XCRS", "struct kvm_xcrs *")

    def set_xcrs(self, state: bytes) -> None:
        """Puts back what `xcrs` gave."""
        self._set_bytes("KVM_SET_XCRS", "struct kvm_xcrs *", state)

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

    # --- MSRs, CPUID, time

    def msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of those MSRs that KVM can read; the others are left out."""
        return {index: value for index in indices if (value := self._msr(index)) is not None}

    def msr(self, index: int) -> int:
        """The value of one MSR."""
        value = self._msr(index)
        if value is None:
            raise ValueError(f"KVM cannot read MSR {index:#x}")
        return value

    def _msr(self, index: int) -> int | None:
        table = ffi.new("struct kvm_msrs *", {"entries": 1})
        table.nmsrs = 1
        table.entries[0].index = index
        return int(table.entries[0].data) if ioctl(self.fd, "KVM_GET_MSRS", table) == 1 else None

    def set_msrs(self, values: Mapping[int, int]) -> list[int]:
        """Sets MSRs one at a time, in order; the indices that KVM refused."""
        return [index for index, value in values.items() if not self.set_msr(index, value)]

    def set_msr(self, index: int, value: int) -> bool:
        """Sets one MSR; False when KVM refused."""
        table = ffi.new("struct kvm_msrs *", {"entries": 1})
        table.nmsrs = 1
        table.entries[0].index, table.entries[0].data = index, value
        return ioctl(self.fd, "KVM_SET_MSRS", table) == 1

    def cpuid(self) -> list[CpuidEntry]:
        """The CPUID that this vCPU has: what KVM made of what was set."""
        table = empty_table()
        ioctl(self.fd, "KVM_GET_CPUID2", table)
        return entries_of(table)

    def set_cpuid(self, entries: Iterable[CpuidEntry]) -> None:
        """Sets CPUID; before the first `run`."""
        ioctl(self.fd, "KVM_SET_CPUID2", table_of(entries))

    def tsc_khz(self) -> int:
        """The guest's TSC frequency in kHz."""
        return ioctl_value(self.fd, "KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """Sets the guest's TSC frequency; only near the host's where the processor cannot scale it."""
        ioctl_value(self.fd, "KVM_SET_TSC_KHZ", khz)

    def kvmclock_ctrl(self) -> None:
        """Tells the guest's kvmclock that it was paused, so that its watchdogs stay quiet."""
        ioctl_value(self.fd, "KVM_KVMCLOCK_CTRL")

    # --- events, debugging, addresses

    def mp_state(self) -> int:
        """`KVM_MP_STATE_*`."""
        return int(self._get("KVM_GET_MP_STATE", "struct kvm_mp_state *").mp_state)

    def set_mp_state(self, state: int) -> None:
        """Sets `KVM_MP_STATE_*`."""
        ioctl(self.fd, "KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", (state,)))

    def nmi(self) -> None:
        """Queues a non-maskable interrupt."""
        ioctl_value(self.fd, "KVM_NMI")

    def interrupt(self, vector: int) -> None:
        """Queues an external interrupt; only without an in-kernel irqchip."""
        ioctl(self.fd, "KVM_INTERRUPT", ffi.new("uint32_t *", vector))

    def set_guest_debug(self, control: int, debugreg: Iterable[int] = ()) -> None:
        """Asks for debug exits: `KVM_GUESTDBG_*` flags and DR0 to DR7 for hardware breakpoints; 0 for none."""
        argument = ffi.new("struct kvm_guest_debug *", {"control": control})
        for index, value in enumerate(debugreg):
            argument.arch.debugreg[index] = value
        ioctl(self.fd, "KVM_SET_GUEST_DEBUG", argument)

    def translate(self, linear_address: int) -> int | None:
        """The guest-physical address of a linear one by the page tables in use; None where there is none."""
        translation = ffi.new("struct kvm_translation *", {"linear_address": linear_address})
        ioctl(self.fd, "KVM_TRANSLATE", translation)
        return int(translation.physical_address) if translation.valid else None

    def stats_fd(self) -> int:
        """A new fd with this vCPU's statistics, for `kvmpy.kvm.stats.read_stats`; the caller closes it."""
        return ioctl_value(self.fd, "KVM_GET_STATS_FD")
