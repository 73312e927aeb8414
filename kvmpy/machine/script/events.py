"""What a hook gets: an event, with the vCPU that it is about, its registers, and memory as it sees it."""

from __future__ import annotations

from kvmpy.machine.script.inject import inject_exception, inject_interrupt, inject_nmi
from kvmpy.machine.script.memory import VirtualMemory
from kvmpy.machine.script.registers import Registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm.exits import Exit
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.vcpu_thread import VcpuThread
    from kvmpy.memory import GuestMemory

# Where a doorbell's arguments are: as C passes them, but for RDX, which has the port in `out dx, eax`.
DOORBELL_ARGUMENTS = ("rdi", "rsi", "rcx", "r8", "r9")


class Event:
    """Something that happened on vCPU number `vcpu` of `machine`; it is over when the hook returns.

    `registers` are fetched when the hook first looks, and written back, where it changed them, when it returns.
    `rip` still is at the instruction or already behind it, as the host's KVM has it.
    """

    __slots__ = ("_registers", "_thread", "machine", "vcpu")

    def __init__(self, machine: Machine, thread: VcpuThread) -> None:
        self.machine = machine
        self.vcpu = thread.vcpu.id
        self._thread = thread
        self._registers: Registers | None = None

    @property
    def registers(self) -> Registers:
        """The vCPU's registers."""
        if self._registers is None:
            vcpu = self._thread.vcpu
            self._registers = Registers(lambda function: function(vcpu))
        return self._registers

    @property
    def memory(self) -> VirtualMemory:
        """Memory by linear address, as this vCPU maps it."""
        return VirtualMemory(self.machine.memory, self.registers)

    @property
    def physical_memory(self) -> GuestMemory:
        """Memory by guest-physical address."""
        return self.machine.memory

    def inject_exception(self, vector: int, error_code: int | None = None, address: int | None = None) -> None:
        """Has the vCPU take an exception before its next instruction; `address` is CR2 for a page fault."""
        inject_exception(self._thread, vector, error_code, address)

    def inject_nmi(self) -> None:
        """Has the vCPU take a non-maskable interrupt."""
        inject_nmi(self._thread)

    def inject_interrupt(self, vector: int) -> None:
        """Has the vCPU take an interrupt, when it will."""
        inject_interrupt(self.machine, self._thread, vector)

    def finish(self) -> None:
        """Writes back what the hook changed; who called the hook does it."""
        if self._registers is not None:
            self._registers.flush()


class Access(Event):
    """The guest reads or writes `size` bytes at `address`: a port or a guest-physical address, or an MSR's index.

    `value` is what it writes, little-endian, and may be changed.  In a read it is None: setting it, or returning it
    from the hook, is the answer, and without one the device beneath answers, or KVM for an MSR.
    """

    __slots__ = ("address", "faulted", "is_write", "size", "swallowed", "value")

    def __init__(
        self, machine: Machine, thread: VcpuThread, address: int, size: int, value: int | None, *, is_write: bool
    ) -> None:
        super().__init__(machine, thread)
        self.address = address
        self.size = size
        self.value = value
        self.is_write = is_write
        self.swallowed = False
        self.faulted = False

    def swallow(self) -> None:
        """Keeps a write from whoever is beneath."""
        self.swallowed = True

    def fault(self) -> None:
        """Answers the access to an MSR with a general protection fault."""
        self.faulted = True

    def __repr__(self) -> str:
        verb = "write" if self.is_write else "read"
        value = "" if self.value is None else f", value={self.value:#x}"
        return f"Access({verb} {self.address:#x}, size={self.size}{value}, vcpu={self.vcpu})"


class Call(Event):
    """A paravirtual call: `number` and `arguments`; what the hook returns, or 0, is the guest's result in RAX."""

    __slots__ = ("arguments", "number")

    def __init__(self, machine: Machine, thread: VcpuThread, number: int, arguments: tuple[int, ...]) -> None:
        super().__init__(machine, thread)
        self.number = number
        self.arguments = arguments

    @classmethod
    def of(cls, event: Event, number: int, arguments: tuple[int, ...]) -> Call:
        """The call that `event` turned out to be, with the same registers."""
        call = cls(event.machine, event._thread, number, arguments)
        call._registers = event.registers
        return call

    def __repr__(self) -> str:
        return f"Call({self.number:#x}, arguments={self.arguments}, vcpu={self.vcpu})"


class ExitEvent(Event):
    """The vCPU left the guest for `reason`, KVM's name in lower case; `exit` has what KVM says of it."""

    __slots__ = ("reason",)

    def __init__(self, machine: Machine, thread: VcpuThread, reason: str) -> None:
        super().__init__(machine, thread)
        self.reason = reason

    @property
    def exit(self) -> Exit:
        """Typed views of `struct kvm_run`."""
        return self._thread.vcpu.exit

    def __repr__(self) -> str:
        return f"ExitEvent({self.reason!r}, vcpu={self.vcpu})"
