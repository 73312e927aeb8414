"""`kvmpy boot`: a machine on this terminal."""

from __future__ import annotations

from kvmpy.cli import images
from kvmpy.config.machine import MachineConfig, parse_port
from kvmpy.errors import ConfigError
from kvmpy.units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Annotated, Literal

    import typer

    from kvmpy.config.cpu import CpuConfig
    from kvmpy.config.drive import DriveConfig

EPILOG = """**Examples**

`kvmpy boot` boots the kernel that `kvmpy kernel` built or fetched, to a shell

`kvmpy boot bzImage -i initrd.gz -a 'quiet' -m 512M` boots a kernel of yours

`echo 'uname -a' | kvmpy boot --timeout 60 > log` works in pipes

`kvmpy boot test.elf --console none --debug-exit 0xf4 --report run.json` runs a test

**Keys on a terminal**

Ctrl-A x ends the machine, Ctrl-A h shows the other keys; all else goes to the guest.

**Exit status**

0 the guest shut down or reset, or Ctrl-A x; 1 the host or kvmpy failed; 2 usage; 3 the guest crashed;
124 timeout; 128+n signal n; with --debug-exit, ((value << 1) | 1) & 255 of what the guest wrote."""


def boot(
    kernel: Annotated[
        str | None,
        typer.Argument(
            metavar="KERNEL",
            help="Linux, or what --protocol says; without it, a Linux that is here.",
        ),
    ] = None,
    firmware: Annotated[
        str | None, typer.Option("--firmware", metavar="FILE", help="Start in this firmware, such as SeaBIOS or qboot.")
    ] = None,
    initrd: Annotated[
        str | None, typer.Option("-i", "--initrd", metavar="FILE", help="The initial RAM disk: a cpio archive.")
    ] = None,
    append: Annotated[
        str, typer.Option("-a", "--append", metavar="TEXT", help="More of the kernel's command line.")
    ] = "",
    memory: Annotated[
        str, typer.Option("-m", "--memory", metavar="SIZE", help="RAM of the guest: 256M, 1.5G.")
    ] = "256M",
    cpus: Annotated[int, typer.Option("-c", "--cpus", metavar="N", help="CPUs of the guest.")] = 1,
    cpu: Annotated[
        str,
        typer.Option(
            "--cpu",
            metavar="CPU",
            help="The processor: host, x86-64-v1 to -v4, or a template.json; then +FEATURE and -FEATURE after commas.",
        ),
    ] = "host",
    msrs: Annotated[
        Literal["fault", "zero"],
        typer.Option("--msrs", help="What a model-specific register that KVM does not know gives the guest."),
    ] = "fault",
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="How the file is loaded: auto, linux, pvh, multiboot, or flat16, flat32, flat64 with @ADDRESS.",
        ),
    ] = "auto",
    console: Annotated[
        Literal["serial", "none"], typer.Option("--console", help="What the guest's first serial port is connected to.")
    ] = "serial",
    debug_exit: Annotated[
        str | None,
        typer.Option(
            "--debug-exit", metavar="PORT", help="An isa-debug-exit device: a write to this I/O port ends the machine."
        ),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option(
            "--script", metavar="FILE", help="A Python file with hooks on the guest's exits: on_pio(0x42) ..."
        ),
    ] = None,
    gdb: Annotated[
        str | None,
        typer.Option(
            "--gdb", metavar="ADDRESS", help="Wait for gdb before the guest starts: :1234, or a socket's path."
        ),
    ] = None,
    drive: Annotated[
        list[str] | None,
        typer.Option(
            "--drive",
            metavar="PATH[,ro][,cache=none]",
            help="A raw image or block device as a disk; ro: read only; cache=none: not cached here. For each disk.",
        ),
    ] = None,
    rng: Annotated[
        bool, typer.Option("--rng", help="A virtio entropy device: the guest's random numbers start from the host's.")
    ] = False,
    balloon: Annotated[
        bool, typer.Option("--balloon", help="A virtio balloon: what the guest frees goes back to the host.")
    ] = False,
    virtio: Annotated[
        Literal["mmio", "pci"], typer.Option("--virtio", help="How the guest reaches its virtio devices.")
    ] = "mmio",
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="End the machine after this time.")
    ] = None,
    report: Annotated[
        str | None, typer.Option("--report", metavar="FILE", help="Write how it ended, times and exit counts as JSON.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="A name for the machine.")] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say on standard error what is done.")] = False,
) -> int:
    """Boot a Linux kernel, a firmware or a bare program; the terminal is its console.

    Standard output gets what the guest writes and nothing else, so it can go down a pipe.
    """
    if kernel is None:
        _check_without_kernel(firmware, protocol, initrd, append)
    if firmware is None or kernel is not None:
        kernel, initrd = images.choose(kernel, initrd, full=cpus > 1 or virtio == "pci")
    config = MachineConfig(
        kernel,
        firmware=firmware,
        initrd=initrd,
        append=append,
        memory=parse_size(memory, path="memory"),
        vcpus=cpus,
        protocol=protocol,
        msrs=msrs,
        cpu=None if cpu == "host" else _parse_cpu(cpu),
        console=console,
        debug_exit=None if debug_exit is None else parse_port(debug_exit, path="debug_exit"),
        script=script,
        gdb=gdb,
        drives=_parse_drives(drive) if drive else (),
        rng=rng,
        virtio=virtio,
        balloon=balloon,
        timeout=timeout,
        report=report,
        name=name,
        verbose=verbose,
    )
    # Only now: a mistake in the options is told without the compiled binding.
    from kvmpy.cli.run import run

    return run(config)


def _check_without_kernel(firmware: str | None, protocol: str, initrd: str | None, append: str) -> None:
    if protocol not in ("auto", "linux"):
        raise ConfigError("kernel", f"name the file that is to be loaded as {protocol}")
    if firmware is not None and (initrd is not None or append):
        raise ConfigError("initrd" if initrd is not None else "append", "it goes with a kernel; name that too")


def _parse_drives(texts: list[str]) -> list[DriveConfig]:
    from kvmpy.config.drive import parse_drive

    return [parse_drive(text) for text in texts]


def _parse_cpu(text: str) -> CpuConfig:
    from kvmpy.config.cpu import parse_cpu

    return parse_cpu(text)
