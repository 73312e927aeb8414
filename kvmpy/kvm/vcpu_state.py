"""All of a virtual processor's state, as KVM hands it out and takes it back (api.rst, section 4)."""

from __future__ import annotations

from kvmpy.kvm._ffi import ffi, ioctl, ioctl_value, lib
from kvmpy.kvm.cpuid import CpuidEntry, empty_table, entries_of, table_of
from kvmpy.kvm.fd import KvmFd
from kvmpy.kvm.msrs import read_msr, write_msr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
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

KVM_VCPU_TSC_CTRL: int = lib.KVM_VCPU_TSC_CTRL
KVM_VCPU_TSC_OFFSET: int = lib.KVM_VCPU_TSC_OFFSET

# More registers than KVM_GET_REG_LIST has on x86; KVM says E2BIG when it is too few.
_MAX_REGISTERS = 1024

# An id of KVM_GET_ONE_REG holds its kind of register here; newer than the oldest headers that we build with.
_REGISTER_TYPE_SHIFT = 32
_REGISTER_TYPE_MSR = 2

# struct kvm_nested_state: a header with the whole size at an offset, then data.
_NESTED_HEADER = 128
_NESTED_SIZE_OFFSET = 4


def msr_register(index: int) -> int:
    """The id by which `VcpuState.one_reg` knows an MSR."""
    return int(lib.KVM_REG_X86 | lib.KVM_REG_SIZE_U64 | _REGISTER_TYPE_MSR << _REGISTER_TYPE_SHIFT | index)


class VcpuState(KvmFd):
    """The part of `Vcpu` that is about its state.

    State that code looks into comes as a struct of `kvmpy.kvm.structs`, read now and written back with the `set_`
    method beside it; state that is only kept comes as bytes.
    """

    # --- general, special and floating-point registers

    def regs(self) -> Regs:
        """The general registers (api.rst 4.11)."""
        return self._get("KVM_GET_REGS", "struct kvm_regs *")

    def set_regs(self, regs: Regs) -> None:
        """Sets the general registers (api.rst 4.12)."""
        ioctl(self.fd, "KVM_SET_REGS", regs)

    def sregs(self) -> Sregs:
        """Segments, descriptor tables, control registers (api.rst 4.13)."""
        return self._get("KVM_GET_SREGS", "struct kvm_sregs *")

    def set_sregs(self, sregs: Sregs) -> None:
        """Sets what `sregs` reads; KVM refuses combinations that no processor has (api.rst 4.14)."""
        ioctl(self.fd, "KVM_SET_SREGS", sregs)

    def fpu(self) -> Fpu:
        """x87 and SSE registers (api.rst 4.22)."""
        return self._get("KVM_GET_FPU", "struct kvm_fpu *")

    def set_fpu(self, fpu: Fpu) -> None:
        """Sets x87 and SSE registers (api.rst 4.23)."""
        ioctl(self.fd, "KVM_SET_FPU", fpu)

    def events(self) -> VcpuEvents:
        """Exceptions, interrupts and NMIs that are pending or being delivered (api.rst 4.31)."""
        return self._get("KVM_GET_VCPU_EVENTS", "struct kvm_vcpu_events *")

    def set_events(self, events: VcpuEvents) -> None:
        """Sets what `events` reads, as far as its `flags` say (api.rst 4.32)."""
        ioctl(self.fd, "KVM_SET_VCPU_EVENTS", events)

    def debug_regs(self) -> DebugRegs:
        """DR0 to DR3, DR6, DR7 (api.rst 4.33)."""
        return self._get("KVM_GET_DEBUGREGS", "struct kvm_debugregs *")

    def set_debug_regs(self, registers: DebugRegs) -> None:
        """Sets DR0 to DR3, DR6, DR7 (api.rst 4.34)."""
        ioctl(self.fd, "KVM_SET_DEBUGREGS", registers)

    # --- state that is kept, not looked into

    def sregs2(self) -> bytes:
        """`struct kvm_sregs2`: as `sregs`, with the PAE page-directory pointers (api.rst 4.131)."""
        return self._get_bytes("KVM_GET_SREGS2", "struct kvm_sregs2 *")

    def set_sregs2(self, state: bytes) -> None:
        """Puts back what `sregs2` gave (api.rst 4.132)."""
        self._set_bytes("KVM_SET_SREGS2", "struct kvm_sregs2 *", state)

    def lapic(self) -> bytes:
        """The local APIC's register page (1 KiB) (api.rst 4.57)."""
        return self._get_bytes("KVM_GET_LAPIC", "struct kvm_lapic_state *")

    def set_lapic(self, state: bytes) -> None:
        """Puts back what `lapic` gave (api.rst 4.58)."""
        self._set_bytes("KVM_SET_LAPIC", "struct kvm_lapic_state *", state)

    def xsave(self, size: int = 4096) -> bytes:
        """The XSAVE area (api.rst 4.42, 4.134); `size`: `check_extension(KVM_CAP_XSAVE2)`, or 4096 where that is 0."""
        area = ffi.new("char[]", max(size, 4096))
        ioctl(self.fd, "KVM_GET_XSAVE2" if size > 4096 else "KVM_GET_XSAVE", area)
        return bytes(ffi.buffer(area))

    def set_xsave(self, state: bytes) -> None:
        """Puts back what `xsave` gave (api.rst 4.43)."""
        ioctl(self.fd, "KVM_SET_XSAVE", ffi.new("char[]", state.ljust(4096, b"\0")))

    def xcrs(self) -> bytes:
        """`struct kvm_xcrs`: XCR0 (api.rst 4.44)."""
        return self._get_bytes("KVM_GET_XCRS", "struct kvm_xcrs *")

    def set_xcrs(self, state: bytes) -> None:
        """Puts back what `xcrs` gave (api.rst 4.45)."""
        self._set_bytes("KVM_SET_XCRS", "struct kvm_xcrs *", state)

    # --- MSRs, CPUID, time

    def msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of those MSRs that KVM can read; the others are left out (api.rst 4.18)."""
        return {index: value for index in indices if (value := read_msr(self.fd, index)) is not None}

    def msr(self, index: int) -> int:
        """The value of one MSR."""
        value = read_msr(self.fd, index)
        if value is None:
            raise ValueError(f"KVM cannot read MSR {index:#x}")
        return value

    def set_msrs(self, values: Mapping[int, int]) -> list[int]:
        """Sets MSRs one at a time, in order; the indices that KVM refused."""
        return [index for index, value in values.items() if not self.set_msr(index, value)]

    def set_msr(self, index: int, value: int) -> bool:
        """Sets one MSR; False when KVM refused (api.rst 4.19)."""
        return write_msr(self.fd, index, value)

    def cpuid(self) -> list[CpuidEntry]:
        """The CPUID that this vCPU has: what KVM made of what was set (api.rst 4.46)."""
        table = empty_table()
        ioctl(self.fd, "KVM_GET_CPUID2", table)
        return entries_of(table)

    def set_cpuid(self, entries: Iterable[CpuidEntry]) -> None:
        """Sets CPUID; before the first `run` (api.rst 4.20)."""
        ioctl(self.fd, "KVM_SET_CPUID2", table_of(entries))

    def supported_hv_cpuid(self) -> list[CpuidEntry]:
        """As `System.supported_hv_cpuid`, for what this vCPU has enabled (api.rst 4.118)."""
        table = empty_table()
        ioctl(self.fd, "KVM_GET_SUPPORTED_HV_CPUID", table)
        return entries_of(table)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> None:
        """Switches a capability of a vCPU on, with up to four arguments (api.rst 4.37, section 6)."""
        self._enable(capability, args, flags)

    def tsc_khz(self) -> int:
        """The guest's TSC frequency in kHz (api.rst 4.56)."""
        return ioctl_value(self.fd, "KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """Sets the guest's TSC frequency; only near the host's where the processor cannot scale it (api.rst 4.55)."""
        ioctl_value(self.fd, "KVM_SET_TSC_KHZ", khz)

    def tsc_offset(self) -> int:
        """What is added to the host's TSC to make the guest's (Documentation/virt/kvm/devices/vcpu.rst, 4.1)."""
        return int.from_bytes(self.get_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET), "little")

    def set_tsc_offset(self, offset: int) -> None:
        """Sets what `tsc_offset` reads, modulo 2^64."""
        self.set_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, (offset % (1 << 64)).to_bytes(8, "little"))

    def kvmclock_ctrl(self) -> None:
        """Tells the guest's kvmclock that it was paused, so that its watchdogs stay quiet (api.rst 4.70)."""
        ioctl_value(self.fd, "KVM_KVMCLOCK_CTRL")

    # --- registers by number, other VMs inside the guest

    def register_ids(self) -> list[int]:
        """The registers that `one_reg` knows (api.rst 4.84); on x86 since Linux 6.18."""
        table = ffi.new("struct kvm_reg_list *", {"reg": _MAX_REGISTERS})
        table.n = _MAX_REGISTERS
        ioctl(self.fd, "KVM_GET_REG_LIST", table)
        return [int(table.reg[i]) for i in range(table.n)]

    def one_reg(self, register: int) -> int:
        """One 64-bit register by its id; `msr_register` makes that of an MSR (api.rst 4.69)."""
        value = ffi.new("uint64_t *")
        ioctl(self.fd, "KVM_GET_ONE_REG", self._one_reg(register, value))
        return int(value[0])

    def set_one_reg(self, register: int, value: int) -> None:
        """Sets one 64-bit register by its id (api.rst 4.68)."""
        holder = ffi.new("uint64_t *", value)
        ioctl(self.fd, "KVM_SET_ONE_REG", self._one_reg(register, holder))

    def _one_reg(self, register: int, value: Any) -> Any:
        return ffi.new("struct kvm_one_reg *", (register, int(ffi.cast("uintptr_t", value))))

    def nested_state(self, size: int) -> bytes:
        """What the guest's own hypervisor has set up in this vCPU, as KVM packs it (api.rst 4.114).

        `size` is what `check_extension(KVM_CAP_NESTED_STATE)` says: at most that many bytes come.
        """
        state = ffi.new("char[]", max(size, _NESTED_HEADER))
        ffi.memmove(state + _NESTED_SIZE_OFFSET, len(state).to_bytes(4, "little"), 4)
        ioctl(self.fd, "KVM_GET_NESTED_STATE", state)
        used = int.from_bytes(ffi.buffer(state)[_NESTED_SIZE_OFFSET : _NESTED_SIZE_OFFSET + 4], "little")
        return bytes(ffi.buffer(state)[:used])

    def set_nested_state(self, state: bytes) -> None:
        """Puts back what `nested_state` gave (api.rst 4.115)."""
        if len(state) < _NESTED_HEADER or int.from_bytes(state[_NESTED_SIZE_OFFSET:][:4], "little") > len(state):
            raise ValueError(f"{len(state)} bytes are no nested state, or less than it says that it has")
        ioctl(self.fd, "KVM_SET_NESTED_STATE", ffi.new("char[]", state))

    # --- events, debugging, addresses

    def mp_state(self) -> int:
        """`KVM_MP_STATE_*` (api.rst 4.38)."""
        return int(self._get("KVM_GET_MP_STATE", "struct kvm_mp_state *").mp_state)

    def set_mp_state(self, state: int) -> None:
        """Sets `KVM_MP_STATE_*` (api.rst 4.39)."""
        ioctl(self.fd, "KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", (state,)))

    def nmi(self) -> None:
        """Queues a non-maskable interrupt (api.rst 4.64)."""
        ioctl_value(self.fd, "KVM_NMI")

    def smi(self) -> None:
        """Queues a system management interrupt; needs `KVM_CAP_X86_SMM` (api.rst 4.96)."""
        ioctl_value(self.fd, "KVM_SMI")

    def interrupt(self, vector: int) -> None:
        """Queues an external interrupt; only without an in-kernel irqchip (api.rst 4.16)."""
        ioctl(self.fd, "KVM_INTERRUPT", ffi.new("uint32_t *", vector))

    def set_guest_debug(self, control: int, debugreg: Iterable[int] = ()) -> None:
        """Asks for debug exits: `KVM_GUESTDBG_*`, and DR0 to DR7 for hardware breakpoints; 0: none (api.rst 4.87)."""
        argument = ffi.new("struct kvm_guest_debug *", {"control": control})
        for index, value in enumerate(debugreg):
            argument.arch.debugreg[index] = value
        ioctl(self.fd, "KVM_SET_GUEST_DEBUG", argument)

    def setup_mce(self, capabilities: int) -> None:
        """Gives the guest machine checks, by the value of its IA32_MCG_CAP (api.rst 4.105).

        That is bits of `System.mce_capabilities`, and the number of banks: 1 to `check_extension(KVM_CAP_MCE)`.
        """
        ioctl(self.fd, "KVM_X86_SETUP_MCE", ffi.new("uint64_t *", capabilities))

    def inject_mce(self, bank: int, status: int, *, mcg_status: int = 0, address: int = 0, misc: int = 0) -> None:
        """Reports a machine check in `bank`: the values of its MSRs (api.rst 4.106)."""
        check = {"bank": bank, "status": status, "mcg_status": mcg_status, "addr": address, "misc": misc}
        ioctl(self.fd, "KVM_X86_SET_MCE", ffi.new("struct kvm_x86_mce *", check))

    def report_tpr_accesses(self, on: bool) -> None:
        """Asks for a `KVM_EXIT_TPR_ACCESS` when the guest touches its task priority register by MMIO."""
        ioctl(self.fd, "KVM_TPR_ACCESS_REPORTING", ffi.new("struct kvm_tpr_access_ctl *", {"enabled": on}))

    def set_vapic_address(self, address: int) -> None:
        """Where in guest memory KVM keeps the task priority for a patched guest; for old 32-bit Windows."""
        ioctl(self.fd, "KVM_SET_VAPIC_ADDR", ffi.new("struct kvm_vapic_addr *", (address,)))

    def translate(self, linear_address: int) -> int | None:
        """The guest-physical address of a linear one by the page tables in use; None for none (api.rst 4.15)."""
        translation = ffi.new("struct kvm_translation *", {"linear_address": linear_address})
        ioctl(self.fd, "KVM_TRANSLATE", translation)
        return int(translation.physical_address) if translation.valid else None

    def stats_fd(self) -> int:
        """A new fd with this vCPU's statistics, for `stats.read_stats`; the caller closes it (api.rst 4.133)."""
        return ioctl_value(self.fd, "KVM_GET_STATS_FD")
