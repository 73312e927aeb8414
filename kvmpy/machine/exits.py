"""What the rare exits mean: everything but ports and memory-mapped I/O, as one free function."""

from __future__ import annotations

from threading import Lock

from kvmpy.errors import KvmError
from kvmpy.kvm.exits import (
    EXIT_NAMES,
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_HLT,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_IRQ_WINDOW_OPEN,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT,
    KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR,
    KVM_INTERNAL_ERROR_EMULATION,
    KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
)
from kvmpy.machine.outcome import CRASH, RESET, SHUTDOWN, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.kvm import Vcpu
    from kvmpy.machine.assist.syscall import SyscallShim
    from kvmpy.memory import GuestMemory
    from kvmpy.x86.cpu.msrs import MsrPolicy

MSR_LSTAR = 0xC0000082

_HOOKS_LOCK = Lock()


class ExitContext:
    """What the handling of an exit may need besides the vCPU.

    `memory` is the guest's; `shim` the one for SYSCALL, or None; `msrs` answers for MSRs that KVM does not know, or
    None where KVM does that.

    `hooks` are asked first: by reason, functions that get the vCPU in its thread and say whether they dealt with the
    exit.  The tuples are replaced and never changed, so a hook may take itself or another away, in any thread.
    """

    __slots__ = ("hooks", "memory", "msrs", "shim")

    def __init__(self, memory: GuestMemory, *, shim: SyscallShim | None = None, msrs: MsrPolicy | None = None) -> None:
        self.memory = memory
        self.shim = shim
        self.msrs = msrs
        self.hooks: dict[int, tuple[Callable[[Vcpu], bool], ...]] = {}

    def add_hook(self, reason: int, hook: Callable[[Vcpu], bool]) -> None:
        """Has `hook` asked at exits for `reason`, before those that are there."""
        with _HOOKS_LOCK:
            self.hooks[reason] = (hook, *self.hooks.get(reason, ()))

    def remove_hook(self, reason: int, hook: Callable[[Vcpu], bool]) -> None:
        """Asks `hook` no longer; one that is not there is fine."""
        with _HOOKS_LOCK:
            self.hooks[reason] = tuple(other for other in self.hooks.get(reason, ()) if other != hook)


def handle_exit(reason: int, vcpu: Vcpu, context: ExitContext) -> Outcome | None:
    """Deals with an exit of `vcpu`; the `Outcome` that ends the machine, or None to let the guest go on.

    A `reason` below 0 is -errno of KVM_RUN, and raises `KvmError`.
    """
    if reason < 0:
        raise KvmError("KVM_RUN", -reason)
    if context.hooks and any(hook(vcpu) for hook in context.hooks.get(reason, ())):
        return None
    if reason == KVM_EXIT_INTERNAL_ERROR:
        return _internal_error(vcpu, context)
    if reason == KVM_EXIT_X86_WRMSR:
        _wrmsr(vcpu, context)
        return None
    if reason == KVM_EXIT_X86_RDMSR:
        _rdmsr(vcpu, context)
        return None
    if reason == KVM_EXIT_HLT:
        # Only without an interrupt controller in KVM does this leave the guest: nothing can wake it.
        return Outcome(SHUTDOWN)
    if reason == KVM_EXIT_SHUTDOWN:
        return _crash("the guest crashed with a triple fault", vcpu, context)
    if reason == KVM_EXIT_SYSTEM_EVENT:
        event = vcpu.exit.system_event.type
        if event == KVM_SYSTEM_EVENT_SHUTDOWN:
            return Outcome(SHUTDOWN)
        if event == KVM_SYSTEM_EVENT_RESET:
            return Outcome(RESET)
        return _crash("the guest reported a crash", vcpu, context)
    if reason == KVM_EXIT_IRQ_WINDOW_OPEN:
        return None
    if reason == KVM_EXIT_FAIL_ENTRY:
        code = vcpu.exit.fail_entry.reason
        return _crash(f"the processor refused the guest's state (code {code:#x})", vcpu, context)
    return _crash(
        f"the guest left for a reason that kvmpy does not know, {EXIT_NAMES.get(reason, reason)}", vcpu, context
    )


def _internal_error(vcpu: Vcpu, context: ExitContext) -> Outcome | None:
    error = vcpu.exit.internal_error
    if error.suberror == KVM_INTERNAL_ERROR_EMULATION:
        from kvmpy.machine import assist

        if assist.finish(vcpu, context.memory):
            return None
        return _crash("the guest ran an instruction that this host's KVM cannot emulate", vcpu, context)
    return _crash(f"KVM met an internal error, suberror {error.suberror}", vcpu, context)


def _wrmsr(vcpu: Vcpu, context: ExitContext) -> None:
    msr = vcpu.exit.msr
    if context.shim is not None and msr.index == MSR_LSTAR:
        context.shim.on_wrmsr(vcpu, msr.value)
    elif context.msrs is not None:
        context.msrs.write(msr)
    else:
        msr.fault()


def _rdmsr(vcpu: Vcpu, context: ExitContext) -> None:
    if context.msrs is not None:
        context.msrs.read(vcpu.exit.msr)
    else:
        vcpu.exit.msr.fault()


def _crash(message: str, vcpu: Vcpu, context: ExitContext) -> Outcome:
    from kvmpy.machine.assist.report import describe_crash

    return Outcome(CRASH, message, details=describe_crash(vcpu, context.memory))
