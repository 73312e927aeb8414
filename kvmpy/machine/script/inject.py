"""Interrupts, NMIs and exceptions that a script has a vCPU take."""

from __future__ import annotations

from kvmpy.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.kvm import Vcpu
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.vcpu_thread import VcpuThread

EXCEPTIONS = 32
VECTORS = 256

_RFLAGS_IF = 1 << 9
_MSI_ADDRESS = 0xFEE00000


def inject_exception(thread: VcpuThread, vector: int, error_code: int | None, address: int | None) -> None:
    """Has the vCPU take exception `vector` (0 to 31) before its next instruction; with `address` as CR2."""
    if not 0 <= vector < EXCEPTIONS or vector == 2:
        raise ValueError(f"{vector} is no exception's vector; those are 0 to 31, without 2, which is the NMI")

    def inject(vcpu: Vcpu) -> None:
        if address is not None:
            sregs = vcpu.sregs()
            sregs.cr2 = address
            vcpu.set_sregs(sregs)
        events = vcpu.events()
        events.exception.injected = 1
        events.exception.pending = 0
        events.exception.nr = vector
        events.exception.has_error_code = error_code is not None
        events.exception.error_code = error_code or 0
        vcpu.set_events(events)

    _between_instructions(thread, inject)


def inject_nmi(thread: VcpuThread) -> None:
    """Has the vCPU take a non-maskable interrupt; `KvmError` where there is no local APIC."""
    _between_instructions(thread, lambda vcpu: vcpu.nmi())


def inject_interrupt(machine: Machine, thread: VcpuThread, vector: int) -> None:
    """Has the vCPU take an interrupt: by a message to its local APIC, which holds it back as long as it must.

    A machine without one (a flat binary's) takes it at once, and only with interrupts on: else `StateError`.
    """
    if not 16 <= vector < VECTORS:
        raise ValueError(f"{vector} is no interrupt's vector; those are 16 to 255")
    if machine.pc is not None:
        machine.vm.signal_msi(_MSI_ADDRESS | thread.vcpu.id << 12, vector)
        return

    def inject(vcpu: Vcpu) -> None:
        if not vcpu.regs().rflags & _RFLAGS_IF or vcpu.events().interrupt.shadow:
            raise StateError("the guest has interrupts off, and no interrupt controller that would keep one for it")
        vcpu.interrupt(vector)

    _between_instructions(thread, inject)


def _between_instructions(thread: VcpuThread, function: Callable[[Vcpu], object]) -> None:
    if thread.is_current:
        thread.post(function)  # In a hook, the instruction that called it is not over yet.
    else:
        thread.call(function)
