"""The exit loop: one thread runs one vCPU, and takes each exit to the device that answers it.

The way of an exit is `KVM_RUN` → `_loop` → `Bus.find` → the device's `read` or `write`.  All that is not an access
to a port or to memory-mapped I/O goes to `exits.handle_exit`, which says how the machine ends, or None to go on.

Whoever wants something of a vCPU that runs asks its thread: it sets what it wants, kicks, and waits.  A kick makes
KVM complete an access that is under way and then return, so a vCPU that attends to others, or is parked, stands
between two instructions, and its state is whole.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from functools import partial

from kvmpy.errors import KvmpyError
from kvmpy.kvm.exits import EXIT_NAMES, KVM_EXIT_DEBUG, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_MMIO
from kvmpy.machine.exits import handle_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from kvmpy.bus import Bus
    from kvmpy.kvm import Vcpu
    from kvmpy.machine.exits import ExitContext
    from kvmpy.machine.outcome import Outcome

    _T = TypeVar("_T")
    _Answer = tuple[Callable[[int, memoryview], None], int, memoryview]

# A guest can touch as many addresses as it likes; so many are counted by themselves, the others together.
COUNTED_ADDRESSES = 4096
OTHER = -1

# Seconds that the machine's end waits for a script's hook that is under way.
PATIENCE = 1.0

# struct kvm_run: exit data starts at byte 32.  Of a port exit the first word is direction, size and port, as one key;
# then come the count and the offset of the data.
_EXIT_DATA = 32
_IO = struct.Struct("<IIQ")
_MMIO = struct.Struct("<Q8xIB")
_MMIO_DATA = _EXIT_DATA + 8


class VcpuStats:
    """What one vCPU left the guest for: `ports` and `mmio` count accesses by address, `others` the rest by reason."""

    __slots__ = ("_accesses", "mmio", "others")

    def __init__(self) -> None:
        # By the key of a port exit, so that the loop counts what it has at hand.
        self._accesses: dict[int, int] = {}
        self.mmio: dict[int, int] = {}
        self.others: dict[int, int] = {}

    @property
    def ports(self) -> dict[int, int]:
        """Accesses by port, reads and writes of any width."""
        ports: dict[int, int] = {}
        for key, count in list(self._accesses.items()):
            port = key >> 16  # -1 >> 16 is -1, OTHER still.
            ports[port] = ports.get(port, 0) + count
        return ports

    def exits(self) -> dict[str, int]:
        """Exits by KVM's name of their reason."""
        counts = {EXIT_NAMES.get(reason, str(reason)): count for reason, count in list(self.others.items())}
        for name, table in (("io", self._accesses), ("mmio", self.mmio)):
            if table:
                counts[name] = sum(table.values())
        return counts


class _Call:
    """Something to be done in the vCPU's thread, and what came of it."""

    __slots__ = ("done", "error", "function", "result")

    def __init__(self, function: Callable[[Vcpu], object]) -> None:
        self.function = function
        self.done = False
        self.result: object = None
        self.error: BaseException | None = None

    def serve(self, vcpu: Vcpu) -> None:
        try:
            self.result = self.function(vcpu)
        except BaseException as error:
            self.error = error
        self.done = True


class _AbandonedError(BaseException):
    """A script's hook came back after the machine was given up: its vCPU may be closed, and is not touched again."""


class VcpuThread:
    """Runs `vcpu` until an exit ends the machine, `stop` is called, or something fails.

    `on_end` gets the `Outcome` of an exit that ends the machine, `on_error` an exception, to which the vCPU's state
    is added as a note; both are called in this vCPU's thread, which then ends.  `context` is all vCPUs' in common.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        pio: Bus,
        mmio: Bus,
        context: ExitContext,
        on_end: Callable[[Outcome], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.vcpu = vcpu
        self.stats = VcpuStats()
        self._pio = pio
        self._mmio = mmio
        self.context = context
        self._on_end = on_end
        self._on_error = on_error
        # What `_learn` found, by the key of a port exit; forgotten whenever the ports' devices change.
        self._answers: dict[int, _Answer] = {}
        pio.on_change(self._answers.clear)
        self._control = threading.Condition()
        self._calls: deque[_Call] = deque()
        self._pausing = False
        self._parked = False
        self._finished = False
        self._stopping = False
        self._in_hook = False
        self._abandoned = False
        self.interrupted = False
        self._thread = threading.Thread(target=self._main, name=f"kvmpy-vcpu{vcpu.id}", daemon=True)

    def start(self) -> None:
        """Lets the guest run."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; `join` waits for it.  From any thread, its own included."""
        with self._control:
            self._stopping = True
            self._control.notify_all()
        self.vcpu.kick()

    def join(self) -> None:
        """Waits for the thread's end; from the thread itself, or before `start`, returns at once.

        A thread that is to stop, and that a script's hook holds up for over `PATIENCE` seconds, is left alone: it ends
        when the hook does.
        """
        if self._thread.ident is None or self._thread is threading.current_thread():
            return
        while True:
            self._thread.join(PATIENCE)
            if not self._thread.is_alive():
                return
            with self._control:
                if self._stopping and self._in_hook:
                    self._abandoned = True
                    return

    @property
    def is_current(self) -> bool:
        """Whether it is this thread that asks."""
        return self._thread is threading.current_thread()

    def pause(self) -> None:
        """Asks the vCPU to stand still until `resume`; `wait_parked` waits until it does."""
        with self._control:
            self._pausing = True
        self.vcpu.kick()

    def wait_parked(self) -> None:
        """Waits until the vCPU stands still after `pause`, or has ended; in its own thread, returns at once."""
        if self._thread is threading.current_thread():
            return
        with self._control:
            self._control.wait_for(lambda: self._parked or not self._pausing or not self._is_running)

    def resume(self) -> None:
        """Lets a paused vCPU run on."""
        with self._control:
            self._pausing = False
            self._control.notify_all()

    def call(self, function: Callable[[Vcpu], _T]) -> _T:
        """What `function(vcpu)` gives, called while the vCPU stands between two instructions; what it raises, raised.

        KVM wants a vCPU's state read and set by the thread that runs it; this is the way for all others.  A guest that
        runs is interrupted for it, and goes on.
        """
        if self._thread is threading.current_thread():
            return function(self.vcpu)
        call = _Call(function)
        with self._control:
            is_asked = self._is_running
            if is_asked:
                self._calls.append(call)
                self._control.notify_all()
        if is_asked:
            self.vcpu.kick()
            with self._control:
                self._control.wait_for(lambda: call.done or not self._is_running)
        if not call.done:
            return function(self.vcpu)  # It has not started, or ended before it came to us: it stands still.
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]

    def in_hook(self, function: Callable[[], _T]) -> _T:
        """Calls `function`, which a script brought and which may take its time, in this thread; see `join`."""
        outer, self._in_hook = self._in_hook, True
        try:
            return function()
        finally:
            with self._control:
                self._in_hook = outer
                abandoned = self._abandoned
            if abandoned:
                raise _AbandonedError

    def step(self) -> bool:
        """Runs one instruction, with what it asks of devices; in this thread, by way of `call`.

        To be called with KVM_GUESTDBG_SINGLESTEP set and `interrupted` cleared.  False when `interrupt` or `stop` ended
        it early.
        """
        vcpu = self.vcpu
        vcpu.immediate_exit = False
        while not (self._stopping or self.interrupted):
            reason = self._step_once()
            if reason != KVM_EXIT_INTR:
                if reason != KVM_EXIT_DEBUG:
                    outcome = handle_exit(reason, vcpu, self.context)
                    if outcome is not None:
                        self._on_end(outcome)
                return True
            vcpu.immediate_exit = False  # Whoever called this has kicked the vCPU too.
        return False

    def _step_once(self) -> int:
        """Why the vCPU stands still again; KVM_EXIT_DEBUG after an instruction, KVM_EXIT_INTR after a kick."""
        vcpu = self.vcpu
        accessed = False
        while True:
            reason = vcpu.enter()
            if reason == KVM_EXIT_IO:
                self._access_port()
            elif reason == KVM_EXIT_MMIO:
                self._access_memory()
            else:
                break
            # After a write, KVM's emulator owes the debug exit, and would give it only after the next instruction:
            # so it may complete what is pending, and nothing more.
            accessed = vcpu.immediate_exit = True
        vcpu.immediate_exit = False
        _count(self.stats.others, reason)
        return KVM_EXIT_DEBUG if accessed and reason == KVM_EXIT_INTR else reason

    def interrupt(self) -> None:
        """Ends a `step` that is under way, in a guest that waits for something; from any thread."""
        self.interrupted = True
        self.vcpu.kick()

    def post(self, function: Callable[[Vcpu], object]) -> None:
        """As `call`, without waiting: for this thread itself, whose vCPU is in the midst of an exit until it returns.

        What `function` raises ends the machine.
        """

        def guarded(vcpu: Vcpu) -> None:
            try:
                function(vcpu)
            except Exception as error:
                self._on_error(error)

        with self._control:
            self._calls.append(_Call(guarded))
            self._control.notify_all()
        self.vcpu.kick()

    def _main(self) -> None:
        vcpu = self.vcpu
        try:
            vcpu.adopt_thread(threading.get_native_id())
            outcome = self._loop()
            if outcome is not None:
                self._on_end(outcome)
        except _AbandonedError:
            pass
        except BaseException as error:  # SystemExit too: a thread that is gone without a word is a machine that hangs.
            if not isinstance(error, KvmpyError):
                from kvmpy.machine.assist.report import describe_crash

                error.add_note(describe_crash(vcpu, self.context.memory))
            self._on_error(error)
        finally:
            vcpu.adopt_thread(0)
            self._answers.clear()  # Their views would keep the vCPU's mapping.
            self._attend(ending=True)

    def _attend(self, ending: bool = False) -> None:
        """Does what others asked for, and stands still while they want it; in the vCPU's thread."""
        while True:
            with self._control:
                while not self._calls:
                    leaves = ending or self._stopping or not self._pausing
                    self._parked = not leaves
                    # The thread itself lives a little longer, and nobody is told when it is gone.
                    self._finished = ending
                    self._control.notify_all()
                    if leaves:
                        return
                    self._control.wait()
                call = self._calls.popleft()
                self._parked = False  # A step runs the guest.
            # Without the lock: what is called may end the machine, and so may others while it is under way.
            call.serve(self.vcpu)
            with self._control:
                self._control.notify_all()

    @property
    def _is_running(self) -> bool:
        """Whether the thread will attend to others once more; with `_control` held."""
        return self._thread.is_alive() and not self._finished

    def _loop(self) -> Outcome | None:
        """The thin loop; the `Outcome` that the guest came to, or None when stopped."""
        vcpu = self.vcpu
        enter = vcpu.enter
        memory = vcpu.memory
        io = partial(_IO.unpack_from, memory, _EXIT_DATA)
        answers = self._answers
        accesses = self.stats._accesses
        others = self.stats.others
        while True:
            reason = enter()
            if reason == KVM_EXIT_IO:
                key, count, start = io()
                try:
                    answer, offset, data = answers[key]
                    accesses[key] += 1
                except KeyError:
                    answer, offset, data = self._learn(key, start)
                if count == 1:
                    answer(offset, data)
                else:
                    # A string instruction (rep outsb) brings many elements at once, all for the same port.
                    size = len(data)
                    for at in range(start, start + size * count, size):
                        answer(offset, memory[at : at + size])
            elif reason == KVM_EXIT_MMIO:
                self._access_memory()
            else:
                others[reason] = others.get(reason, 0) + 1
                if reason == KVM_EXIT_INTR:
                    vcpu.immediate_exit = False
                    if self._stopping:
                        return None
                    if self._calls or self._pausing:
                        self._attend()
                        if self._stopping:
                            return None
                    continue
                outcome = handle_exit(reason, vcpu, self.context)
                if outcome is not None:
                    return outcome

    def _learn(self, key: int, start: int) -> _Answer:
        """Finds who answers a kind of port access: the device's method, the offset, and where the data lie."""
        _count(self.stats._accesses, key)
        port, size, is_write = key >> 16, key >> 8 & 0xFF, key & 0xFF
        mapping = self._pio.find(port)
        answer: Callable[[int, memoryview], None]
        if mapping is None:
            answer, offset = (_swallow if is_write else _float_high), 0
        else:
            answer, offset = (mapping.write if is_write else mapping.read), port - mapping.start
        # KVM puts the data of a vCPU's port accesses always at the same place.
        found = (answer, offset, self.vcpu.memory[start : start + size])
        if len(self._answers) < COUNTED_ADDRESSES:
            self._answers[key] = found
            now = self._pio.find(port)
            if now is not mapping or (now is not None and answer not in (now.read, now.write)):
                self._answers.pop(key, None)  # Another thread took the device away in between, or hooked it.
        return found

    def _access_port(self) -> None:
        """A port access by the plain way, as `_loop` has it in its fast one."""
        key, count, start = _IO.unpack_from(self.vcpu.memory, _EXIT_DATA)
        answer, offset, data = self._learn(key, start)
        size = len(data)
        for at in range(start, start + size * count, size):
            answer(offset, self.vcpu.memory[at : at + size])

    def _access_memory(self) -> None:
        address, size, is_write = _MMIO.unpack_from(self.vcpu.memory, _EXIT_DATA)
        _count(self.stats.mmio, address)
        data = self.vcpu.memory[_MMIO_DATA : _MMIO_DATA + min(size, 8)]
        mapping = self._mmio.find(address)
        if mapping is None:
            if not is_write:
                _float_high(0, data)
        elif is_write:
            mapping.write(address - mapping.start, data)
        else:
            mapping.read(address - mapping.start, data)


def _count(table: dict[int, int], key: int) -> None:
    """Counts one more of `key`, with all that came after `COUNTED_ADDRESSES` others together under `OTHER`."""
    if key not in table and len(table) >= COUNTED_ADDRESSES:
        key = OTHER
    table[key] = table.get(key, 0) + 1


def _swallow(_offset: int, _data: memoryview) -> None:
    """A write to a port that nobody has."""


def _float_high(_offset: int, data: memoryview) -> None:
    """A read from where nobody is: the lines of the bus are pulled up."""
    data[:] = b"\xff" * len(data)
