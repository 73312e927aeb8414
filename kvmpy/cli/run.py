"""Runs a machine on this terminal, and says how it ended."""

from __future__ import annotations

import gc
import os
import time

from kvmpy.cli.say import RED, YELLOW, printable, say, sentence
from kvmpy.errors import KvmpyError, StateError
from kvmpy.host.signals import EndSignals
from kvmpy.host.terminal import Terminal
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import CRASH, DEBUG_EXIT, HOST_ERROR, PANIC, RESET, SHUTDOWN, SIGNAL, USER, Outcome
from kvmpy.machine.timeline import Timeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.config.machine import MachineConfig
    from kvmpy.machine.machine import Machine

STDIN, STDOUT = 0, 1

# How long a signal waits for a machine that is being built, in seconds: a script may never be done with it.
PATIENCE = 2.0

# A machine that ends so did as it was told to.
_QUIET = (SHUTDOWN, RESET, DEBUG_EXIT, USER)


def run(config: MachineConfig) -> int:
    """Runs the machine of `config` until it ends; returns the exit status.

    Standard input and output are its console.  SIGINT, SIGTERM and SIGHUP end it in order, with 128 + their number.
    The terminal is back before anything is said about the end.
    """
    from kvmpy.cli.main import STARTED

    timeline = Timeline(STARTED)
    # Before anything is opened: a closed fd 0 would become somebody else's.
    source, sink = _if_open(STDIN), _if_open(STDOUT)
    terminal = Terminal(STDIN)
    machine: Machine | None = None
    building = True

    def end(number: int) -> None:
        until = time.monotonic() + PATIENCE
        while building and time.monotonic() < until:
            time.sleep(0.01)
        if machine is not None:
            machine.end(_ended_by(number))
            machine.hurry()  # It may have ended before, and wait for the reader of its output.
        elif building:
            say(f"ended by signal {number}", YELLOW)
            os.kill(os.getpid(), number)  # The second one kills.

    with EndSignals(end, terminal.restore) as signals:
        try:
            with build(config, input_fd=source, output_fd=sink, timeline=timeline) as machine:
                building = False
                if signals.received is not None:
                    end(signals.received)  # It came before there was a machine.
                for note in (*machine.entry.notes, *machine.cpu.notes):
                    say(note, YELLOW)
                if machine.gdb is not None:
                    say(f"waiting for gdb: target remote {machine.gdb.address}", YELLOW)
                if config.verbose:
                    _say_machine(machine)
                gc.enable()
                with terminal:
                    outcome = _run(machine)
                if config.console == "serial" and machine.tap.in_line and _is_terminal(STDOUT):
                    os.write(STDOUT, b"\n")  # What comes next, ours or the shell's, has a line of its own.
        except KvmpyError as error:
            # A script's part of the traceback, for its author.
            details = getattr(error, "details", "")
            outcome = Outcome(HOST_ERROR, sentence(error), status=error.status, details=details)
        finally:
            building = False
    if config.report is not None:
        from kvmpy.cli.report import write_report

        write_report(config.report, config, outcome, timeline, machine)
    _say_end(outcome, scripted=config.script is not None)
    return outcome.status


def _run(machine: Machine) -> Outcome:
    try:
        machine.start()
    except StateError:
        pass  # A signal ended it before it began.
    return machine.wait(machine.config.timeout)


def _ended_by(number: int) -> Outcome:
    return Outcome(SIGNAL, f"ended by signal {number}", status=128 + number)


def _if_open(fd: int) -> int | None:
    try:
        os.fstat(fd)
    except OSError:
        return None
    return fd


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _say_machine(machine: Machine) -> None:
    config, profile = machine.config, machine.profile
    parts = [machine.entry.description]
    if config.kernel is not None:
        parts.insert(0, f"kernel {config.kernel!r}")
    if config.initrd is not None:
        parts.append(f"initrd {config.initrd!r}")
    parts.append(f"{config.memory >> 20} MiB")
    parts.append(f"{config.vcpus} CPU{'s' if config.vcpus > 1 else ''}")
    if profile is not None:
        parts.append(f"host {profile.kind}")
    say(", ".join(parts))
    if machine.command_line:
        say(f"command line: {machine.command_line}")


def _say_end(outcome: Outcome, *, scripted: bool) -> None:
    if outcome.reason in _QUIET:
        return
    colour = RED if outcome.reason in (HOST_ERROR, CRASH, PANIC) else YELLOW
    say(outcome.message or outcome.reason, colour)
    # A guest's registers and a script's traceback are for their authors; a traceback of ours is for us.
    if outcome.details and (outcome.reason != HOST_ERROR or scripted or os.environ.get("KVMPY_DEBUG")):
        for line in outcome.details.splitlines():
            say(printable(line))
