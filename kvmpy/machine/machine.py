"""One virtual machine and its life: created → running ⇄ paused → stopped.

`builder.build` makes it; who has it, owns it.  All ends lead through `end`: the first one counts, and `wait` gives
its `Outcome`.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import partial
from time import monotonic, time

from kvmpy.backends.tap import Tap
from kvmpy.bus import mmio_bus, pio_bus
from kvmpy.errors import KvmpyError, StateError
from kvmpy.machine.outcome import CRASH, GUEST_ENDS, HOST_ERROR, PANIC, RESET, TIMEOUT, USER, Outcome
from kvmpy.machine.reactor import Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmpy.backends.chardev import ConsoleInput, ConsoleOutput
    from kvmpy.boot.entry import Entry
    from kvmpy.config.machine import MachineConfig
    from kvmpy.devices.legacy.serial import Serial
    from kvmpy.devices.virtio.balloon import Balloon
    from kvmpy.devices.virtio.block import Block
    from kvmpy.devices.virtio.transport.base import Transport
    from kvmpy.kvm import Vm
    from kvmpy.machine.gdb.server import GdbServer
    from kvmpy.machine.pc import Pc
    from kvmpy.machine.profile import HostProfile
    from kvmpy.machine.script.debugger import Debugger
    from kvmpy.machine.script.hooks import Function, Hooks
    from kvmpy.machine.script.symbols import Symbols
    from kvmpy.machine.script.trace import Record, Trace
    from kvmpy.machine.timeline import Timeline
    from kvmpy.machine.vcpu_thread import VcpuThread
    from kvmpy.memory import GuestMemory
    from kvmpy.x86.cpu.setup import CpuSetup

CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"


class Machine:
    """A virtual machine with everything in it.  Use it as a context manager, or call `close`.

        with build(config) as machine:
            machine.start()
            outcome = machine.wait()

    `state` is CREATED, RUNNING, PAUSED or STOPPED.  The attributes below are its parts, for scripts and for reports.
    """

    def __init__(self, config: MachineConfig, timeline: Timeline) -> None:
        self.config = config
        self.timeline = timeline
        self.state = CREATED
        self.outcome: Outcome | None = None
        self.profile: HostProfile | None = None
        self.command_line = ""
        self.pc: Pc | None = None
        self.firmware_log: bytearray | None = None
        self.gdb: GdbServer | None = None
        self.clock = time
        self.monotonic = monotonic
        self.stack = ExitStack()
        self.pio = pio_bus()
        self.mmio = mmio_bus()
        self.reactor = Reactor(self.fail)
        self.stack.callback(self.reactor.close)
        self.tap = Tap()
        self.vcpus: list[VcpuThread] = []
        self.drives: list[Block] = []
        self.virtio: list[Transport] = []
        self.balloon: Balloon | None = None
        self.output: ConsoleOutput | None = None
        self.input: ConsoleInput | None = None
        # The builder sets these, once each.
        self.memory: GuestMemory
        self.vm: Vm
        self.entry: Entry
        self.serial: Serial
        self.cpu: CpuSetup
        self.on_end: list[Callable[[Outcome], object]] = []
        """Called with the outcome when the machine has come to its end, in whichever thread brought it there."""
        self._hooks: Hooks | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, *, paused: bool = False) -> None:
        """Lets the vCPUs run; once.  With `paused`, or with a stub for gdb, only when `resume` or gdb says so."""
        paused = paused or self.gdb is not None
        with self._lock:
            if self.state != CREATED:
                raise StateError(f"the machine is {self.state}; only a new one can be started")
            self.state = PAUSED if paused else RUNNING
            if paused:
                for vcpu in self.vcpus:
                    vcpu.pause()
        if self.input is not None:
            self.input.start()
        self.timeline.mark("first_run")
        for vcpu in self.vcpus:
            vcpu.start()
        if self.gdb is not None:
            self.gdb.start()

    def wait(self, timeout: float | None = None) -> Outcome:
        """Waits for the machine's end, and says how it came to it.

        After `timeout` seconds the machine is stopped, and the outcome's reason is `timeout`.  Whoever reads the
        guest's output has until then too; of a machine that ended before, he loses what he has not taken.
        """
        if self.state == CREATED:
            raise StateError("the machine was not started; nothing would ever end it")
        deadline = None if timeout is None else self.monotonic() + timeout
        if not self._ended.wait(timeout):
            self.end(Outcome(TIMEOUT, f"the guest was still running after {timeout:g} s"))
        for vcpu in self.vcpus:
            vcpu.join()
        assert self.outcome is not None
        if self.output is not None:
            self.output.drain(None if deadline is None else max(deadline - self.monotonic(), 0))
        return self.outcome

    def run(self, timeout: float | None = None) -> Outcome:
        """`start`, then `wait`."""
        self.start()
        return self.wait(timeout)

    def pause(self) -> None:
        """Stops all vCPUs between two instructions, until `resume`; their state is then whole and stays.

        A paused machine stays so; one that ended, or ends meanwhile, stays stopped.  Where a vCPU waits for a slow
        reader of the console, or in a script's hook, so does this.  Called in a vCPU's thread, as hooks are, it does
        not wait: each vCPU stops as soon as it can, this one when the hook returns.
        """
        with self._lock:
            if self.state == CREATED:
                raise StateError("the machine was not started; there is nothing to pause")
            if self.state == RUNNING:
                self.state = PAUSED
            for vcpu in self.vcpus:
                vcpu.pause()
        if any(vcpu.is_current for vcpu in self.vcpus):
            return  # Two that wait for each other would wait for ever.
        for vcpu in self.vcpus:
            vcpu.wait_parked()

    def resume(self) -> None:
        """Lets a paused machine run on; one that is not paused is left alone."""
        with self._lock:
            if self.state == PAUSED:
                self.state = RUNNING
            for vcpu in self.vcpus:
                vcpu.resume()

    def stop(self) -> None:
        """Ends the machine as if its power were cut; no vCPU runs any more.  In any state, any number of times.

        Called in a vCPU's thread, as hooks are, it does not wait for the others.
        """
        self.end(Outcome(USER))
        if any(vcpu.is_current for vcpu in self.vcpus):
            return
        for vcpu in self.vcpus:
            vcpu.join()

    def end(self, outcome: Outcome) -> None:
        """Brings the machine to its end with `outcome`, unless it is there already.  From any thread; does not wait.

        A kernel that panicked resets or crashes afterwards: that end counts as the panic.
        """
        with self._lock:
            if self.outcome is not None:
                return
            panic = self.tap.panic if outcome.reason in (RESET, CRASH) else None
            if panic is not None:
                outcome = Outcome(PANIC, f"the guest's kernel panicked: {panic}", details=outcome.details)
            self.outcome = outcome
            self.state = STOPPED
            if self.tap.first_byte is not None:
                self.timeline.mark("first_console_byte", self.tap.first_byte)
            self.timeline.mark("end")
            for vcpu in self.vcpus:
                vcpu.stop()
        if outcome.reason not in GUEST_ENDS:
            self.hurry()
        self._ended.set()
        for listener in tuple(self.on_end):
            listener(outcome)

    # --- scripts: kvmpy.machine.script, loaded when it is used

    @property
    def hooks(self) -> Hooks:
        """What stands behind the `on_` methods."""
        with self._lock:
            if self._hooks is None:
                from kvmpy.machine.script.hooks import Hooks

                self._hooks = Hooks(self)
            return self._hooks

    def on_pio(self, where: int | range, function: Function | None = None) -> Any:
        """Calls `function` with an `Access` for each port access in `where`, before the device that is there.

        A read is answered with what it returns, a write may be changed or swallowed; see `Access`.  As with all `on_`
        methods the result is a `Hook` with `remove()`; without a function it is a decorator that makes one.
        """
        return _hooked(self.hooks.on_pio, where, function)

    def on_mmio(self, where: int | range, function: Function | None = None) -> Any:
        """As `on_pio`, for guest-physical addresses that are no RAM."""
        return _hooked(self.hooks.on_mmio, where, function)

    def on_msr(self, index: int, function: Function | None = None) -> Any:
        """Calls `function` with an `Access` at each `rdmsr` and `wrmsr` of MSR `index`; KVM can filter 15 of them."""
        return _hooked(self.hooks.on_msr, index, function)

    def on_doorbell(self, port: int, function: Function | None = None) -> Any:
        """Calls `function` with a `Call` at each `out` to `port`: paravirtual calls of one's own.

        The guest puts the call's number into RAX and up to five arguments into RDI, RSI, RCX, R8 and R9 (in 32-bit
        code EAX, EDI, ESI, ECX), writes to the port, in any width, and finds what `function` returned in RAX.
        """
        return _hooked(self.hooks.on_doorbell, port, function)

    def on_hypercall(self, number: int, function: Function | None = None) -> Any:
        """Calls `function` with a `Call` at each hypercall `number`; `ConfigError` for those that KVM keeps."""
        return _hooked(self.hooks.on_hypercall, number, function)

    def on_exit(self, reason: int | str, function: Function | None = None) -> Any:
        """Calls `function` with an `ExitEvent` at each exit for `reason`, `KVM_EXIT_*` or its name as in "hlt".

        When it returns True it has dealt with the exit, and the guest goes on; else it is dealt with as ever.
        """
        return _hooked(self.hooks.on_exit, reason, function)

    def trace(self, where: range, function: Callable[[Record], object] | None = None, *, mmio: bool = False) -> Trace:
        """Tells of each access to the ports or addresses in `where`: calls `function`, or is iterated; see `Trace`."""
        from kvmpy.machine.script.trace import Trace

        return Trace(self, where, function, mmio=mmio)

    def debugger(self, symbols: Symbols | None = None) -> Debugger:
        """Stops the machine, started or not, and gives it into a debugger's hands until that is closed."""
        from kvmpy.machine.script.debugger import Debugger

        return Debugger(self, symbols)

    def cut(self) -> None:
        """Ends the machine as a user who has had enough of it: now, whatever is under way."""
        self.end(Outcome(USER))
        self.hurry()

    def hurry(self) -> None:
        """Waits no longer for a slow reader of the guest's output: what he has not taken is lost."""
        if self.output is not None:
            self.output.release()

    def panicked(self) -> None:
        """Ends the machine because its kernel says that it panicked."""
        panic = self.tap.panic
        self.end(Outcome(PANIC, f"the guest's kernel panicked{f': {panic}' if panic else ''}"))

    def press_power_button(self) -> None:
        """Asks the guest to shut down; one that does not listen to ACPI does nothing."""
        if self.pc is None:
            raise StateError("this machine has no power button; its guest is a flat binary")
        self.pc.power.press_power_button()

    def fail(self, error: BaseException) -> None:
        """Ends the machine because `error` came up in one of its threads."""
        if isinstance(error, KvmpyError):
            self.end(Outcome(HOST_ERROR, str(error), status=error.status))
            return
        from traceback import format_exception

        text = f"{type(error).__name__}: {error}; this is a mistake in kvmpy, or in a script of yours"
        self.end(Outcome(HOST_ERROR, text, details="".join(format_exception(error))))

    def close(self) -> None:
        """Stops the machine and gives back all that it held.  Twice is fine."""
        self.stop()
        self.stack.close()


def _hooked(add: Callable[[Any, Function], Any], where: object, function: Function | None) -> Any:
    return partial(add, where) if function is None else add(where, function)
