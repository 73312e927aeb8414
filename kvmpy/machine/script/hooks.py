"""Hooks: functions that a machine calls when its guest does something.

A hook runs in the thread of the vCPU that caused it, which stands still meanwhile; the others run on.  One that blocks
blocks its vCPU alone, and `Machine.pause`, which waits for it; `Machine.stop` waits a second.  What can stop nothing
is a hook that never gives the interpreter up, in C code that holds its lock.  An exception in a hook ends the machine,
with the script's part of the traceback and the guest's state.  Hooks may come and go at any time, from hooks too.
"""

from __future__ import annotations

import threading
from functools import partial

from kvmpy.errors import ConfigError
from kvmpy.kvm.capabilities import KVM_CAP_EXIT_HYPERCALL
from kvmpy.kvm.exits import EXIT_NAMES, KVM_EXIT_HYPERCALL, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_MMIO
from kvmpy.machine.script.bus_hooks import BusHooks
from kvmpy.machine.script.coalesced import CoalescedRing
from kvmpy.machine.script.events import DOORBELL_ARGUMENTS, Access, Call, Event, ExitEvent
from kvmpy.machine.script.failure import failure
from kvmpy.machine.script.msr_hooks import MsrHooks
from kvmpy.x86.layout import IOAPIC, LOCAL_APIC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmpy.kvm import Vcpu
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.vcpu_thread import VcpuThread

    Function = Callable[[Any], Any]

# What KVM answers itself where it has the interrupt controllers and the timer: 8259 (and ELCR), 8254, APICs.
KVM_PORTS = (range(0x20, 0x22), range(0xA0, 0xA2), range(0x4D0, 0x4D2), range(0x40, 0x44), range(0x61, 0x62))
KVM_ADDRESSES = (range(IOAPIC, IOAPIC + 0x100), range(LOCAL_APIC, LOCAL_APIC + 0x1000))

_EXIT_NUMBERS = {name: number for number, name in EXIT_NAMES.items()}


class Hook:
    """A function that is called; `what` says when, as in `on_pio(0x42)`.  Calling the hook calls its function."""

    __slots__ = ("_remove", "function", "what")

    def __init__(self, what: str, function: Function, remove: Callable[[Hook], None]) -> None:
        self.what = what
        self.function = function
        self._remove: Callable[[Hook], None] | None = remove

    def remove(self) -> None:
        """It is not called from now on; a call that is under way comes to its end.  Twice is fine."""
        remove, self._remove = self._remove, None
        if remove is not None:
            remove(self)

    def __call__(self, event: Any) -> Any:
        """What the function says."""
        return self.function(event)

    def __repr__(self) -> str:
        return f"<{self.what}: {getattr(self.function, '__name__', self.function)}>"


class Hooks:
    """All hooks of one machine.  Each method is that of `Machine` by its name, which says what it does."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.lock = threading.RLock()
        self.pio = BusHooks(machine, machine.pio, self.call)
        self.mmio = BusHooks(machine, machine.mmio, self.call)
        self.ring = CoalescedRing(machine)
        self._msrs = MsrHooks(machine, self.call)

    def call(self, thread: VcpuThread, hook: Hook, event: Event) -> Any:
        """What the hook's function says to `event`, called in `thread`; None where it fails: that ends the machine."""
        return thread.in_hook(partial(self._guarded, thread, hook, event))

    def _guarded(self, thread: VcpuThread, hook: Hook, event: Event) -> Any:
        try:
            result = hook.function(event)
            event.finish()
        except BaseException as error:  # SystemExit too: nobody would hear of it.
            self._machine.end(failure(repr(hook), error, thread.vcpu, self._machine.memory))
            return None
        return result

    def _hook(self, what: str, function: Function, owner: BusHooks | MsrHooks) -> Hook:
        def remove(hook: Hook) -> None:
            with self.lock:
                owner.remove(hook)

        return Hook(what, function, remove)

    def check_range(self, name: str, where: range, *, mmio: bool) -> None:
        """A `ConfigError` for addresses that KVM never leaves to us."""
        bare = self._machine.pc is None
        if mmio:
            regions = (range(region.start, region.end) for region in self._machine.memory.regions)
            _refuse(name, where, regions, "it is RAM, which the guest reads and writes without an exit")
            _refuse(name, where, () if bare else KVM_ADDRESSES, "KVM answers it itself, for the APICs")
        else:
            reason = "KVM answers it itself, for the interrupt controllers and the timer"
            _refuse(name, where, () if bare else KVM_PORTS, reason)

    def on_pio(self, where: int | range, function: Function) -> Hook:
        """Ports."""
        return self._on_bus("on_pio", self.pio, where, function)

    def on_mmio(self, where: int | range, function: Function) -> Hook:
        """Guest-physical addresses."""
        return self._on_bus("on_mmio", self.mmio, where, function)

    def _on_bus(self, name: str, bus: BusHooks, where: int | range, function: Function) -> Hook:
        addresses = _run(name, where)
        self.check_range(name, addresses, mmio=bus is self.mmio)
        hook = self._hook(_title(name, addresses), function, bus)
        with self.lock:
            bus.add(addresses, hook)
        return hook

    def on_msr(self, index: int, function: Function) -> Hook:
        """An MSR."""
        hook = self._hook(f"on_msr({index:#x})", function, self._msrs)
        with self.lock:
            self._msrs.add(index, hook)
        return hook

    def on_doorbell(self, port: int, function: Function) -> Hook:
        """Calls of one's own."""

        def ring(event: Access) -> None:
            if event.is_write:
                event.swallow()
                registers = event.registers
                mask = (1 << (64 if registers.code_bits == 64 else 32)) - 1
                arguments = tuple(getattr(registers, name) & mask for name in DOORBELL_ARGUMENTS)
                call = Call.of(event, registers.rax & mask, arguments)
                registers.rax = int(function(call) or 0) & mask

        ring.__name__ = getattr(function, "__name__", "ring")
        hook = self.on_pio(port, ring)
        hook.what = f"on_doorbell({port:#x})"
        return hook

    def on_hypercall(self, number: int, function: Function) -> Hook:
        """Hypercalls that KVM leaves to us."""
        vm = self._machine.vm
        offered = vm.check_extension(KVM_CAP_EXIT_HYPERCALL)
        if not 0 <= number < 64 or not offered >> number & 1:
            names = ", ".join(str(bit) for bit in range(64) if offered >> bit & 1) or "none"
            raise ConfigError(
                "on_hypercall",
                f"KVM answers hypercall {number} itself and leaves only these to others: {names}; "
                "for calls of your own, use on_doorbell(port)",
            )
        vm.enable_cap(KVM_CAP_EXIT_HYPERCALL, offered)

        def called(vcpu: Vcpu) -> bool:
            view = vcpu.exit.hypercall
            if view.number != number:
                return False
            thread = self._machine.vcpus[vcpu.id]
            view.result = int(self.call(thread, hook, Call(self._machine, thread, number, view.arguments)) or 0)
            return True

        hook = self._exit_hook(f"on_hypercall({number})", KVM_EXIT_HYPERCALL, called, function)
        return hook

    def on_exit(self, reason: int | str, function: Function) -> Hook:
        """Any other exit."""
        number = _EXIT_NUMBERS.get(reason.lower().removeprefix("kvm_exit_"), -1) if isinstance(reason, str) else reason
        if number not in EXIT_NAMES:
            raise ConfigError("on_exit", f"{reason!r} is none of {', '.join(EXIT_NAMES.values())}")
        name = EXIT_NAMES[number]
        if number in (KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_INTR):
            advice = {KVM_EXIT_IO: "use on_pio", KVM_EXIT_MMIO: "use on_mmio"}.get(
                number, "it is how kvmpy is asked in"
            )
            raise ConfigError("on_exit", f"{name} comes too often for this way; {advice}")

        def exited(vcpu: Vcpu) -> bool:
            thread = self._machine.vcpus[vcpu.id]
            return bool(self.call(thread, hook, ExitEvent(self._machine, thread, name)))

        hook = self._exit_hook(f"on_exit({name})", number, exited, function)
        return hook

    def _exit_hook(self, what: str, reason: int, caller: Callable[[Vcpu], bool], function: Function) -> Hook:
        context = self._machine.vcpus[0].context
        hook = Hook(what, function, lambda _hook: context.remove_hook(reason, caller))
        # So that it finds the hook that it is for, the caller is not asked before this returns.
        context.add_hook(reason, caller)
        return hook


def _run(name: str, where: int | range) -> range:
    addresses = where if isinstance(where, range) else range(where, where + 1)
    if addresses.step != 1 or not addresses:
        raise ConfigError(name, f"{addresses} is no run of addresses")
    return addresses


def _title(name: str, where: range) -> str:
    last = f" to {where.stop - 1:#x}" if len(where) > 1 else ""
    return f"{name}({where.start:#x}{last})"


def _refuse(name: str, where: range, others: Any, reason: str) -> None:
    for other in others:
        if where.start < other.stop and other.start < where.stop:
            raise ConfigError(name, f"{max(where.start, other.start):#x} never leaves the guest: {reason}")
