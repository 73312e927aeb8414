"""A debugger for the whole machine: breakpoints, single steps, registers and memory, all vCPUs stopped together.

Breakpoints are instructions of one byte that stand in the guest's code only while it runs: whoever looks at memory
while it stands still, a snapshot included, sees the code as it is.  On a processor it is INT3, which KVM hands to us
(KVM_GUESTDBG_USE_SW_BP).  Where KVM emulates ring 0, its emulator takes INT3 through real mode's vectors by itself and
fails at it elsewhere; INT1 it never knows, so that is what stands there, and the failure is the hit.
"""

from __future__ import annotations

import threading
from functools import partial

from kvmpy.errors import GuestMemoryError, KvmError, StateError
from kvmpy.kvm import System
from kvmpy.kvm.exits import KVM_EXIT_DEBUG, KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION
from kvmpy.kvm.vcpu import (
    KVM_GUESTDBG_BLOCKIRQ,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_SW_BP,
)
from kvmpy.machine.machine import CREATED, PAUSED, STOPPED
from kvmpy.machine.profile import EMULATED_RING0, profile
from kvmpy.machine.script import user_mode
from kvmpy.machine.script.memory import NotMappedError, VirtualMemory
from kvmpy.machine.script.registers import Registers
from kvmpy.machine.script.stops import BREAKPOINT, END, PAUSE, STEP, Breakpoint, Stop

__all__ = ["BREAKPOINT", "END", "PAUSE", "STEP", "Breakpoint", "Debugger", "Stop"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vcpu
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.outcome import Outcome
    from kvmpy.machine.script.symbols import Symbols

INT3 = 0xCC
INT1 = 0xF1

_BP_VECTOR = 3

_WATCH = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP
_STEP = _WATCH | KVM_GUESTDBG_SINGLESTEP


class Debugger:
    """Takes a machine under control: one that was not started yet, that runs, or that is paused.

        with machine.debugger() as debugger:
            debugger.break_at(0x100000)
            stop = debugger.run()
            print(stop.reason, hex(debugger.registers(stop.vcpu).rax))

    The machine stands still from the first moment; `resume` lets it run, `wait` waits for the next `Stop`, `run` does
    both.  One thread uses it; only
    `interrupt` may come from any.  All addresses are linear; `physical` in a name
    says otherwise.  Single steps hold interrupts back where KVM can.  A machine has one debugger at a time.
    `close`, or the end of the `with`, takes all breakpoints away and lets the machine run on, unless it was paused
    before.
    """

    def __init__(self, machine: Machine, symbols: Symbols | None = None) -> None:
        self.machine = machine
        self.symbols = symbols
        self.breakpoints: list[Breakpoint] = []
        self.last: Stop | None = None
        """The stop that the machine stands at; None while it runs."""
        self._changed = threading.Condition()
        self._next: Stop | None = None
        # Where vCPUs stand of which a stop told: there they run through a breakpoint, and everywhere else they have yet
        # to come upon it, though they may stand at one, because another's stop came first.
        self._told: dict[int, int] = {}
        self._step_flags = _STEP | KVM_GUESTDBG_BLOCKIRQ
        self._closed = False
        self._context = machine.vcpus[0].context
        if any(
            isinstance(getattr(hook, "__self__", None), Debugger)
            for hook in self._context.hooks.get(KVM_EXIT_DEBUG, ())
        ):
            raise StateError("this machine has a debugger already")
        with System() as system:
            emulated = profile(system).kind == EMULATED_RING0
        self._emulated = emulated
        self._byte = INT1 if emulated else INT3
        # On the guest's #DB handlers, where ring 3 has its exceptions to itself: see user_mode.
        self._traps: list[Breakpoint] = []
        # vCPUs that run one instruction of ring 3.
        self._in_user_step: set[int] = set()
        self._user_entry: Breakpoint | None = None
        self._was_paused = machine.state == PAUSED
        if machine.state == CREATED:
            machine.start(paused=True)
        machine.pause()
        self._registers = [Registers(thread.call) for thread in machine.vcpus]
        self._hooks = {KVM_EXIT_DEBUG: self._on_debug, KVM_EXIT_INTERNAL_ERROR: self._on_internal_error}
        for reason, hook in self._hooks.items():
            self._context.add_hook(reason, hook)
        machine.on_end.append(self._on_end)
        if machine.outcome is not None:
            self._on_end(machine.outcome)
            return
        for thread in machine.vcpus:
            thread.call(partial(_set_debug, flags=_WATCH))
        self._tell(Stop(PAUSE, 0, self.pc(0)))

    def __enter__(self) -> Debugger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the machine back, as the class says.  Twice is fine."""
        if self._closed:
            return
        self._closed = True
        machine = self.machine
        if machine.state != STOPPED:
            self.pause()
        self.breakpoints.clear()
        for reason, hook in self._hooks.items():
            self._context.remove_hook(reason, hook)
        machine.on_end.remove(self._on_end)
        if machine.state == STOPPED:
            return
        for thread, registers in zip(machine.vcpus, self._registers, strict=True):
            registers.flush()
            thread.call(partial(_set_debug, flags=0))
        if not self._was_paused:
            machine.resume()

    def _tell(self, stop: Stop) -> None:
        self.last = stop
        self._told[stop.vcpu] = stop.address

    # --- running and stopping

    def resume(self) -> None:
        """Lets the machine run until something stops it; `wait` says what."""
        if self.last is not None and self.last.reason == END:
            raise StateError("the machine has ended; there is nothing to resume")
        self._require_stop()
        for vcpu, registers in enumerate(self._registers):
            registers.flush()
            pc = self.pc(vcpu)
            if self._told.get(vcpu) == pc and self._breakpoint_at(vcpu, pc) is not None:
                self.machine.vcpus[vcpu].interrupted = False
                self._step(vcpu)
        self._told.clear()
        if self.breakpoints or self._in_user_step:
            self._set_traps()
        for breakpoint in (*self.breakpoints, *self._traps):
            self._insert(breakpoint)
        for registers in self._registers:
            registers.flush()
        self.last = None
        self.machine.resume()

    def wait(self, timeout: float | None = None) -> Stop | None:
        """The next stop, when it comes; None, with the machine still running, after `timeout` seconds without one."""
        if self.last is not None:
            return self.last
        with self._changed:
            if not self._changed.wait_for(lambda: self._next is not None, timeout):
                return None
            stop, self._next = self._next, None
        assert stop is not None
        if stop.reason != END:
            self.machine.pause()
        outcome = self.machine.outcome
        if outcome is not None:  # Perhaps only while its vCPUs were on their way to a stop.
            stop = Stop(END, outcome=outcome)
            for thread in self.machine.vcpus:
                thread.join()
        for breakpoint in (*self.breakpoints, *self._traps):
            self._lift(breakpoint)
        if stop.reason == PAUSE:
            stop.address = self.pc(stop.vcpu)
        elif stop.breakpoint is not None:
            stop.breakpoint.hits += 1
        with self._changed:
            if self._next is not None and self._next.reason != END:
                # It came while this stop was on its way: a breakpoint is come upon again, and a pause is there.
                self._next = None
            self._tell(stop)
        return stop

    def run(self, timeout: float | None = None) -> Stop | None:
        """`resume`, then `wait`."""
        self.resume()
        return self.wait(timeout)

    def pause(self) -> Stop:
        """Stops the machine wherever it is, unless something else has just done so; the stop."""
        if self.last is None:
            self._report(Stop(PAUSE))
        stop = self.wait()
        assert stop is not None
        return stop

    def interrupt(self) -> None:
        """Ends the `wait` or `step` of another thread with a stop for PAUSE."""
        with self._changed:
            if self.last is None:
                self._report(Stop(PAUSE))
                return
        for thread in self.machine.vcpus:
            thread.interrupt()

    def step(self, vcpu: int = 0, count: int = 1) -> Stop:
        """Runs `count` instructions of one vCPU, while the others stand still; a breakpoint on the way ends it.

        With PAUSE as its reason the stop came early, by `interrupt` or `pause`.
        """
        self._require_stop()
        stop = self.last
        assert stop is not None
        thread = self.machine.vcpus[vcpu]
        thread.interrupted = False
        for number in range(count):
            if stop.reason == END:
                raise StateError("the machine has ended; there is nothing to step")
            if number:
                hit = self._breakpoint_at(vcpu, stop.address)
                if hit is not None:
                    hit.hits += 1
                    stop = Stop(BREAKPOINT, vcpu, stop.address, hit)
                    break
            done = self._step(vcpu)
            if self.machine.outcome is not None:
                stop = Stop(END, outcome=self.machine.outcome)
            else:
                done = done and not thread.interrupted
                stop = Stop(STEP if done else PAUSE, vcpu, self.pc(vcpu))
                if not done:
                    break
        self._tell(stop)
        return stop

    def _step(self, vcpu: int) -> bool:
        thread = self.machine.vcpus[vcpu]
        if self._emulated:
            registers = self._registers[vcpu]
            memory = VirtualMemory(self.machine.memory, registers)
            in_user_mode, entry = registers.ring == 3, user_mode.entered_next(memory, registers)
            if (in_user_mode or entry is not None) and self._set_traps():
                return self._step_user(vcpu, None if entry is None else Breakpoint(self, entry, memory.physical(entry)))
        self._registers[vcpu].flush()

        def step(inner: Vcpu) -> bool:
            try:
                _set_debug(inner, self._step_flags)
            except KvmError:
                self._step_flags = _STEP  # KVM before 5.12 cannot hold interrupts back.
                _set_debug(inner, self._step_flags)
            try:
                return thread.step()
            finally:
                _set_debug(inner, _WATCH)

        return thread.call(step)

    def _step_user(self, vcpu: int, entry: Breakpoint | None) -> bool:
        """As `_step` in ring 3, or to `entry` in it, on a host that emulates ring 0: by a #DB that is taken back."""
        thread = self.machine.vcpus[vcpu]
        self._registers[vcpu].flush()
        self._user_entry = entry
        if entry is None:
            thread.call(user_mode.set_trap_flag)
        placed = self._traps if entry is None else [*self._traps, entry]
        self._in_user_step.add(vcpu)
        for breakpoint in placed:
            self._insert(breakpoint)
        try:
            # A system call or a page fault on the way has the kernel run, until it comes back.
            while vcpu in self._in_user_step and self.machine.outcome is None:
                if not thread.call(lambda _: thread.step()):
                    return False
        finally:
            for breakpoint in placed:
                self._lift(breakpoint)
            if entry is not None:
                self._user_entry = None
                self._in_user_step.discard(vcpu)
        return True

    def _set_traps(self) -> bool:
        """Finds the guest's #DB handlers; whether there is one."""
        self._traps = []
        for registers in self._registers if self._emulated else ():
            memory = VirtualMemory(self.machine.memory, registers)
            handler = user_mode.debug_handler(memory, registers)
            if handler is not None:
                self._traps.append(Breakpoint(self, handler, memory.physical(handler)))
        return bool(self._traps)

    # --- registers and memory

    def registers(self, vcpu: int = 0) -> Registers:
        """The registers of a vCPU; what is changed takes effect when it runs on, or with `flush`."""
        self._require_stop()
        return self._registers[vcpu]

    def pc(self, vcpu: int = 0) -> int:
        """The linear address of a vCPU's next instruction."""
        return self._registers[vcpu].pc

    def memory(self, vcpu: int = 0) -> VirtualMemory:
        """Memory by linear address, as a vCPU maps it now; by physical address it is `machine.memory`."""
        self._require_stop()
        return VirtualMemory(self.machine.memory, self._registers[vcpu])

    # --- breakpoints

    def break_at(self, place: int | str, vcpu: int = 0) -> Breakpoint:
        """Stops whichever vCPU comes to `place`: an address, which `vcpu` maps now, or the name of one of `symbols`.

        `NotMappedError` where it is not mapped, `KeyError` for a name that is not there.
        """
        if isinstance(place, str):
            if self.symbols is None:
                raise KeyError(f"there is no symbol {place!r}, since the debugger was given none")
            address = self.symbols.address(place)
        else:
            address = place
        physical = self.memory(vcpu).physical(address)
        try:
            self.machine.memory.region_of(physical, 1)
        except GuestMemoryError:
            raise NotMappedError(address) from None
        breakpoint = Breakpoint(self, address, physical)
        self.breakpoints.append(breakpoint)
        return breakpoint

    def remove(self, breakpoint: Breakpoint) -> None:
        """Takes a breakpoint away; one that is gone already is fine."""
        if breakpoint in self.breakpoints:
            self._require_stop()
            self.breakpoints.remove(breakpoint)

    def _insert(self, breakpoint: Breakpoint) -> None:
        memory = self.machine.memory
        byte = memory.read(breakpoint.physical, 1)[0]
        others = (other for other in (*self.breakpoints, *self._traps) if other.physical == breakpoint.physical)
        if all(other.original is None for other in others):
            breakpoint.original = byte
            memory.write(breakpoint.physical, bytes([self._byte]))

    def _lift(self, breakpoint: Breakpoint) -> None:
        original, breakpoint.original = breakpoint.original, None
        memory = self.machine.memory
        # A guest that wrote its code anew meanwhile keeps what it wrote.
        if original is not None and memory.read(breakpoint.physical, 1)[0] == self._byte:
            memory.write(breakpoint.physical, bytes([original]))

    def _breakpoint_at(self, vcpu: int, address: int) -> Breakpoint | None:
        if not self.breakpoints:
            return None
        return self._find(VirtualMemory(self.machine.memory, self._registers[vcpu]), address)

    def _find(self, memory: VirtualMemory, address: int) -> Breakpoint | None:
        try:
            physical = memory.physical(address)
        except NotMappedError:
            return None
        found = [breakpoint for breakpoint in self.breakpoints if breakpoint.physical == physical]
        # Of two names for one place, the one that was asked for.
        return next((one for one in found if one.address == address), found[0] if found else None)

    # --- in the vCPUs' threads

    def _on_debug(self, vcpu: Vcpu) -> bool:
        if vcpu.exit.debug.exception == _BP_VECTOR and not self._hit(vcpu):
            _deliver_breakpoint(vcpu)
        return True

    def _on_internal_error(self, vcpu: Vcpu) -> bool:
        if vcpu.exit.internal_error.suberror != KVM_INTERNAL_ERROR_EMULATION:
            return False
        return vcpu.exit.internal_error.instruction[:1] in (b"", bytes([self._byte])) and self._hit(vcpu)

    def _hit(self, vcpu: Vcpu) -> bool:
        """Whether a vCPU stands at a breakpoint of ours: then the machine stops."""
        registers = Registers(lambda function: function(vcpu))
        address = registers.pc
        memory = VirtualMemory(self._context.memory, registers)
        breakpoint = self._find(memory, address)
        # What KVM has queued beside its failure goes with this.
        vcpu.set_regs(vcpu.regs())
        if breakpoint is None:
            return self._on_trap(vcpu, memory, registers)
        self._report(Stop(BREAKPOINT, vcpu.id, address, breakpoint))
        return True

    def _on_trap(self, vcpu: Vcpu, memory: VirtualMemory, registers: Registers) -> bool:
        """Whether a vCPU stands at a #DB handler of ours: then what came from us is taken back, or it runs on."""
        pc = registers.pc
        trap = next((trap for trap in self._traps if trap.original is not None and trap.address == pc), None)
        if trap is None:
            return False
        rip = user_mode.interrupted(memory, registers)
        if rip is not None:
            if vcpu.id in self._in_user_step:
                self._in_user_step.discard(vcpu.id)
                entry = self._user_entry
                user_mode.take_back(vcpu, memory, registers, rip if entry is None else entry.address)
                return True
            # INT1 is a trap, but a KVM of this kind was seen to deliver it as a fault.
            for address in (rip, rip - 1):
                breakpoint = self._find(memory, address)
                if breakpoint is not None:
                    user_mode.take_back(vcpu, memory, registers, address)
                    self._report(Stop(BREAKPOINT, vcpu.id, address, breakpoint))
                    return True
        # The guest's own: it runs the instruction that stands there, and goes on.
        self._lift(trap)
        thread = self.machine.vcpus[vcpu.id]
        thread.interrupted = False
        _set_debug(vcpu, _STEP)
        thread.step()
        _set_debug(vcpu, _WATCH)
        self._insert(trap)
        return True

    def _on_end(self, outcome: Outcome) -> None:
        self._report(Stop(END, outcome=outcome))

    def _report(self, stop: Stop) -> None:
        """Makes `stop` the next one, unless another came first, and sets the vCPUs to stand still."""
        with self._changed:
            if stop.reason != END and self._next is not None:
                return
            self._next = stop
            if stop.reason != END:
                for thread in self.machine.vcpus:
                    thread.pause()
            self._changed.notify_all()

    def _require_stop(self) -> None:
        if self.last is None:
            raise StateError("the machine runs; pause it, or wait for a stop, first")


def _set_debug(vcpu: Vcpu, flags: int) -> None:
    vcpu.set_guest_debug(flags)


def _deliver_breakpoint(vcpu: Vcpu) -> None:
    """Has the guest take the #BP of an INT3 of its own; KVM moves RIP behind it."""
    events = vcpu.events()
    events.exception.injected = 1
    events.exception.nr = _BP_VECTOR
    events.exception.has_error_code = 0
    vcpu.set_events(events)
