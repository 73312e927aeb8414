"""From what is wanted (`MachineConfig`) to a machine that can start: the only place that wires anything.

Bring-up goes on one `ExitStack`, so that whatever fails, and in the end `Machine.close`, takes it down in the
opposite order.
"""

from __future__ import annotations

from errno import EPIPE
from functools import partial

from kvmpy.backends.chardev import ConsoleInput, ConsoleOutput
from kvmpy.backends.escape import Escapes
from kvmpy.backends.tap import Tap
from kvmpy.boot import load, recognise
from kvmpy.devices.legacy.debug import DEBUG_CONSOLE_PORT, DEBUG_EXIT_PORTS, DebugConsole, DebugExit, exit_status
from kvmpy.devices.legacy.serial import Serial
from kvmpy.devices.legacy.serial_registers import SERIAL_PORTS
from kvmpy.errors import HostError, KvmpyError
from kvmpy.irq import EdgeLine, OpenLine
from kvmpy.kvm import System
from kvmpy.machine.exits import ExitContext
from kvmpy.machine.machine import Machine
from kvmpy.machine.outcome import DEBUG_EXIT, HOST_ERROR, USER, Outcome
from kvmpy.machine.timeline import Timeline
from kvmpy.machine.vcpu_thread import VcpuThread
from kvmpy.memory import GuestMemory
from kvmpy.x86.cpu.setup import CpuSetup
from kvmpy.x86.layout import IDENTITY_MAP, TSS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.boot import Kernel
    from kvmpy.config.machine import MachineConfig
    from kvmpy.irq import InterruptLine

COM1 = 0x3F8
COM1_IRQ = 4


def build(
    config: MachineConfig,
    *,
    input_fd: int | None = None,
    output_fd: int | None = None,
    timeline: Timeline | None = None,
) -> Machine:
    """A machine as `config` wants it, loaded and ready to `start`.

    Its serial console reads from `input_fd` and writes to `output_fd`, which stay the caller's; without them it
    hears nothing, and what it says is only looked at.  Raises `KvmpyError`, with everything undone.
    """
    try:
        return _build(config, input_fd, output_fd, timeline or Timeline())
    except OSError as error:
        if isinstance(error, KvmpyError):
            raise
        # The host's limits, on open files above all, show wherever a part is made.
        raise HostError("making the machine's parts", error.errno or 0) from error


def _build(config: MachineConfig, input_fd: int | None, output_fd: int | None, timeline: Timeline) -> Machine:
    machine = Machine(config, timeline)
    try:
        kernel = None if config.kernel is None else recognise(config.kernel, config.protocol)
        with System() as system:
            _add_memory(machine, system)
            _add_platform(machine, kernel)
            _add_virtio(machine)
            _load(machine, system, kernel)
            _add_console(machine, input_fd, output_fd)
            _add_vcpus(machine, system)
        _attach(machine)
    except BaseException:
        machine.close()
        raise
    return machine


def _add_memory(machine: Machine, system: System) -> None:
    memory = machine.memory = machine.stack.enter_context(GuestMemory(machine.config.memory))
    vm = machine.vm = machine.stack.enter_context(system.create_vm())
    machine.timeline.mark("vm_created")
    # Before the interrupt controllers: a slot that is added after them costs 100 times as much.
    for slot, region in enumerate(memory.regions):
        vm.set_memory_region(slot, region.start, region.buffer)
    if machine.config.firmware is not None:
        from kvmpy.machine.firmware import map_firmware

        map_firmware(machine)
    vm.set_identity_map_address(IDENTITY_MAP)
    vm.set_tss_address(TSS)


def _add_platform(machine: Machine, kernel: Kernel | None) -> None:
    config = machine.config
    # A flat guest wants a processor, memory and a console, and starts the sooner for it.
    is_bare = config.firmware is None and kernel is not None and kernel.is_flat
    if not is_bare:
        from kvmpy.machine.pc import Pc

        machine.pc = Pc(machine)
    if config.debug_exit is not None:
        machine.pio.add(config.debug_exit, DEBUG_EXIT_PORTS, DebugExit(partial(_debug_exit, machine)), "debug-exit")


def _add_virtio(machine: Machine) -> None:
    """The devices that were asked for, before the tables that tell of them are written."""
    if machine.config.drives:
        from kvmpy.machine.drives import add_drive

        for drive in machine.config.drives:
            add_drive(machine, drive)
    if machine.config.rng:
        from kvmpy.devices.virtio.rng import Rng
        from kvmpy.machine.virtio import add_virtio

        add_virtio(machine, Rng())
    if machine.config.balloon:
        from kvmpy.machine.balloon import add_balloon

        machine.balloon = add_balloon(machine)


def _virtio_words(machine: Machine, kernel: Kernel) -> list[str]:
    if machine.pc is None or not machine.pc.platform.virtio_mmio:
        return []
    from kvmpy.machine.virtio import command_line_words

    return command_line_words(machine, kernel)


def _load(machine: Machine, system: System, kernel: Kernel | None) -> None:
    config, pc = machine.config, machine.pc
    machine.command_line = config.append
    if pc is not None:
        from kvmpy.machine.cmdline import command_line
        from kvmpy.machine.profile import profile

        machine.profile = profile(system)
        if kernel is not None and kernel.is_linux:
            machine.command_line = command_line(machine.profile, config.append, _virtio_words(machine, kernel))
    if pc is not None and config.firmware is not None:
        from kvmpy.machine.firmware import inform_firmware

        machine.entry = inform_firmware(machine, pc, kernel, COM1)
    elif kernel is not None:
        rsdp = 0
        if pc is not None:
            from kvmpy.x86.acpi.write import write_acpi

            rsdp = write_acpi(machine.memory, pc.platform)
        machine.entry = load(
            machine.memory,
            kernel,
            initrd=config.initrd,
            cmdline=machine.command_line,
            vcpus=config.vcpus,
            rsdp=rsdp,
        )
    machine.timeline.mark("loaded")


def _debug_exit(machine: Machine, value: int) -> None:
    machine.end(Outcome(DEBUG_EXIT, status=exit_status(value)))


def _add_console(machine: Machine, input_fd: int | None, output_fd: int | None) -> None:
    """COM1 to the caller's streams, by way of the tap that listens for a panic."""
    stack, reactor = machine.stack, machine.reactor
    sink = None
    if output_fd is not None and machine.config.console == "serial":
        output = machine.output = ConsoleOutput(output_fd, reactor, partial(_output_closed, machine))
        stack.callback(output.close)
        sink = output.write
    machine.tap = Tap(sink)
    serial = machine.serial = Serial(_line(machine, COM1_IRQ), machine.tap.write)
    machine.pio.add(COM1, SERIAL_PORTS, serial, "serial")
    if machine.pc is None:
        # What the simplest of guests print with: one `out`.
        machine.pio.add(DEBUG_CONSOLE_PORT, 1, DebugConsole(machine.tap.write), "debugcon")
    if input_fd is not None and machine.config.console == "serial":
        escapes = Escapes(machine.cut, serial.receive_break)
        keyboard = machine.input = ConsoleInput(input_fd, reactor, partial(_receive, serial), escapes)
        serial.on_room = keyboard.on_room
        stack.callback(keyboard.close)
    # Closed first, so that it calls nobody who is closed already.
    stack.callback(reactor.close)


def _receive(serial: Serial, data: bytes) -> int:
    # Until its driver listens, a guest would lose what is typed: setting up the port empties its FIFO.
    return serial.receive(data) if serial.listening else 0


def _output_closed(machine: Machine, error: OSError) -> None:
    if error.errno == EPIPE:
        machine.end(Outcome(USER))  # Whoever read our output has had enough of it.
    else:
        machine.end(Outcome(HOST_ERROR, f"the guest's output cannot be written: {error.strerror}"))


def _line(machine: Machine, irq: int) -> InterruptLine:
    return OpenLine() if machine.pc is None else machine.stack.enter_context(EdgeLine(machine.vm, irq))


def _add_vcpus(machine: Machine, system: System) -> None:
    config, vm = machine.config, machine.vm
    shim = None
    if machine.profile is not None and machine.profile.emulates_ring0:
        from kvmpy.machine.assist import syscall

        syscall.install(vm)
        shim = syscall.SyscallShim(machine.memory)
    msrs = None
    if config.msrs != "fault":
        from kvmpy.x86.cpu.msrs import MsrPolicy

        msrs = MsrPolicy(config.msrs)
        msrs.install(vm)
    context = ExitContext(machine.memory, shim=shim, msrs=msrs)
    machine.cpu = cpu = CpuSetup(config.cpu, system, config.vcpus)
    for vcpu_id in range(config.vcpus):
        vcpu = machine.stack.enter_context(vm.create_vcpu(vcpu_id))
        cpu.apply(vcpu, vcpu_id, boot_msrs=config.firmware is None)
        # Without a local APIC that would wake them, all begin where the first does, and tell each other by CPUID.
        if vcpu_id == 0 or machine.pc is None:
            machine.entry.apply(vcpu)
        machine.vcpus.append(VcpuThread(vcpu, machine.pio, machine.mmio, context, machine.end, machine.fail))


def _attach(machine: Machine) -> None:
    """Gives a finished machine to those who look into it: gdb, then a script."""
    config = machine.config
    if config.gdb is not None:
        from kvmpy.machine.gdb.address import parse_address
        from kvmpy.machine.gdb.server import GdbServer

        machine.gdb = machine.stack.enter_context(GdbServer(machine, parse_address(config.gdb)))
    if config.script is not None:
        from kvmpy.machine.script.loader import load_script

        load_script(machine, config.script)
