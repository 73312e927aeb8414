"""Hooks on model-specific registers: KVM's filter has the guest leave for those that are hooked."""

from __future__ import annotations

from kvmpy.errors import ConfigError, KvmError
from kvmpy.kvm.capabilities import KVM_CAP_X86_USER_SPACE_MSR
from kvmpy.kvm.exits import KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR
from kvmpy.kvm.vm import (
    KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_UNKNOWN,
    KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE,
    MsrRange,
)
from kvmpy.machine.exits import MSR_LSTAR
from kvmpy.machine.script.events import Access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmpy.kvm import Vcpu
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.script.events import Event
    from kvmpy.machine.script.hooks import Hook
    from kvmpy.machine.vcpu_thread import VcpuThread

# KVM's filter has 16 ranges, of which a shim for SYSCALL may need one.
MOST_MSRS = 15

# Of these KVM filters none: they are the local APIC's.
X2APIC_MSRS = range(0x800, 0x900)

_READ_AND_WRITE = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE
_MSR_SIZE = 8


class MsrHooks:
    """The hooks on MSRs of `machine`; `call` as for `BusHooks`.  The caller keeps `add` and `remove` apart."""

    __slots__ = ("_call", "_hooks", "_machine")

    def __init__(self, machine: Machine, call: Callable[[VcpuThread, Hook, Event], Any]) -> None:
        self._machine = machine
        self._call = call
        self._hooks: dict[int, tuple[Hook, ...]] = {}

    def add(self, index: int, hook: Hook) -> None:
        """Asks `hook` at each access to MSR `index`; `ConfigError` where KVM cannot deliver it."""
        vm = self._machine.vm
        if index in X2APIC_MSRS or not 0 <= index < 1 << 32:
            raise ConfigError("on_msr", f"{index:#x} is a register of the local APIC, which KVM leaves to nobody")
        if not vm.check_extension(KVM_CAP_X86_USER_SPACE_MSR):
            raise ConfigError("on_msr", "this host's KVM leaves no MSR to others; Linux 5.10 and later do")
        if index not in self._hooks and len(self._hooks) >= MOST_MSRS:
            raise ConfigError("on_msr", f"KVM filters {MOST_MSRS} MSRs at most; remove a hook first")
        if not self._hooks:
            context = self._machine.vcpus[0].context
            # The last call wins, so what others have switched on stays so.
            unknown = KVM_MSR_EXIT_REASON_UNKNOWN if context.msrs is not None else 0
            vm.enable_cap(KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER | unknown)
            context.add_hook(KVM_EXIT_X86_RDMSR, self._on_read)
            context.add_hook(KVM_EXIT_X86_WRMSR, self._on_write)
        self._hooks = {**self._hooks, index: (*self._hooks.get(index, ()), hook)}
        self._filter()

    def remove(self, hook: Hook) -> None:
        """Asks `hook` no longer."""
        left = {index: tuple(one for one in hooks if one is not hook) for index, hooks in self._hooks.items()}
        self._hooks = {index: hooks for index, hooks in left.items() if hooks}
        try:
            self._filter()
        except KvmError:
            pass  # The machine is closed.
        if not self._hooks:
            context = self._machine.vcpus[0].context
            context.remove_hook(KVM_EXIT_X86_RDMSR, self._on_read)
            context.remove_hook(KVM_EXIT_X86_WRMSR, self._on_write)

    def _filter(self) -> None:
        ranges = [MsrRange(index, 1, (index,), _READ_AND_WRITE) for index in self._hooks]
        # The shim sees what it needs either way, as `_pass_write` does not get in its way.
        if self._machine.vcpus[0].context.shim is not None and MSR_LSTAR not in self._hooks:
            ranges.append(MsrRange(MSR_LSTAR, 1, (MSR_LSTAR,), KVM_MSR_FILTER_WRITE))
        self._machine.vm.set_msr_filter(ranges)

    def _on_read(self, vcpu: Vcpu) -> bool:
        msr = vcpu.exit.msr
        hooks = self._hooks.get(msr.index)
        if hooks is None:
            return False
        thread = self._machine.vcpus[vcpu.id]
        event = Access(self._machine, thread, msr.index, _MSR_SIZE, None, is_write=False)
        for hook in hooks:
            answer = self._call(thread, hook, event)
            if answer is not None:
                event.value = int(answer)
            if event.faulted or event.value is not None:
                break
        value = event.value
        if value is None and not event.faulted:
            value = vcpu.msrs((msr.index,)).get(msr.index)
        if value is None or event.faulted:
            msr.fault()
        else:
            msr.value = value & (1 << 64) - 1
        return True

    def _on_write(self, vcpu: Vcpu) -> bool:
        msr = vcpu.exit.msr
        hooks = self._hooks.get(msr.index)
        if hooks is None:
            return False
        thread = self._machine.vcpus[vcpu.id]
        event = Access(self._machine, thread, msr.index, _MSR_SIZE, msr.value, is_write=True)
        for hook in hooks:
            self._call(thread, hook, event)
            if event.faulted or event.swallowed:
                break
        if event.faulted:
            msr.fault()
        elif not event.swallowed:
            assert event.value is not None
            if msr.index == MSR_LSTAR and thread.context.shim is not None:
                msr.value = event.value
                return False  # The shim has it.
            if not vcpu.set_msr(msr.index, event.value & (1 << 64) - 1):
                msr.fault()
        return True
