"""`kvmpy boot` with tiny guests: streams, terminals, signals, statuses, reports."""

from __future__ import annotations

import functools
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmpy.testing.asm import assemble
from kvmpy.testing.images import ElfSegment, elf_image
from kvmpy.testing.terminal import TerminalProcess
from kvmpy.units import MIB

pytestmark = pytest.mark.kvm

ADDRESS = 16 * MIB

RESET = """
reset:  mov     al, 0xfe
        out     0x64, al
hang:   jmp     hang
"""

# Says `text`, then does what `end` says.
SAY = """
        lea     rsi, [rel text]
        mov     ecx, length
        mov     dx, 0x3f8
next:   mov     al, [rsi]
        inc     rsi
        out     dx, al
        dec     ecx
        jnz     next
{end}
{rest}
text:   db      {text}
length  equ     $ - text
"""

# Gives back what comes in, until it is a q.
ECHO = """
        mov     al, 1           ; Somebody listens: interrupts for received data, and DTR.
        mov     dx, 0x3f9
        out     dx, al
        mov     dx, 0x3fc
        out     dx, al
        mov     dx, 0x3f8
        mov     al, '>'
        out     dx, al
wait:   mov     dx, 0x3fd
        in      al, dx
        test    al, 1
        jz      wait
        mov     dx, 0x3f8
        in      al, dx
        out     dx, al
        cmp     al, 'q'
        jne     wait
"""

# Writes without an end.
FLOOD = """
        mov     dx, 0x3f8
        mov     al, 'x'
next:   out     dx, al
        jmp     next
"""


def say(text: str, end: str = "jmp reset") -> str:
    return SAY.format(text=text, end=f"        {end}", rest=RESET)


Kernel = Callable[[str], str]


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """Makes a kernel file of some 64-bit code."""

    def make(source: str) -> str:
        path = tmp_path / "kernel"
        path.write_bytes(elf_image([ElfSegment(ADDRESS, bytes(assemble(source, origin=ADDRESS)))]))
        return str(path)

    return make


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "kvmpy", "boot", "-m", "32M", "--timeout", "20", *words]


def boot(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options.setdefault("stdin", subprocess.DEVNULL)
    if "stdout" not in options:
        options.update(stdout=subprocess.PIPE)
    return subprocess.run(command(*words), stderr=subprocess.PIPE, timeout=90, **options)


def test_output_is_the_guests_alone_and_a_reset_is_status_0(kernel: Kernel) -> None:
    result = boot(kernel(say('"hello", 10')))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"hello\n", b"")


def test_a_panic_makes_the_reset_after_it_status_3(kernel: Kernel) -> None:
    result = boot(kernel(say('"Kernel panic - not syncing: all is lost", 10')))
    assert result.returncode == 3
    assert b"all is lost" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_a_panic_counts_though_nobody_sees_it(kernel: Kernel) -> None:
    result = boot(kernel(say('"Kernel panic - not syncing: all is lost", 10')), "--console", "none")
    assert (result.returncode, result.stdout) == (3, b"")


def test_what_a_panic_says_cannot_steer_the_terminal(kernel: Kernel) -> None:
    result = boot(kernel(say('"Kernel panic - not syncing: ", 27, "[2J", 10')))
    assert b"\x1b" not in result.stderr


def test_a_triple_fault_is_a_crash(kernel: Kernel) -> None:
    result = boot(kernel(say('"x"', end="ud2")))
    assert (result.returncode, result.stdout) == (3, b"x")
    assert result.stderr.startswith(b"kvmpy: ")
    assert b"Traceback" not in result.stderr


def test_debug_exit_gives_its_status_and_says_nothing(kernel: Kernel) -> None:
    source = say('"x"', end="mov al, 0x21\n        out 0xf4, al\nstay:   jmp stay")
    result = boot(kernel(source), "--debug-exit", "0xf4")
    assert (result.returncode, result.stderr) == ((0x21 << 1) | 1, b"")


@pytest.mark.parametrize("limit", [5, 8, 11])
def test_a_process_that_may_open_no_more_files_is_told_so(kernel: Kernel, limit: int) -> None:
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit))
    result = boot(kernel(say('"x"')), preexec_fn=limited)
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
    assert b"Too many open files" in result.stderr
    assert b"mistake" not in result.stderr


def test_a_timeout_is_status_124(kernel: Kernel) -> None:
    result = boot(kernel(say('"x"', end="jmp hang")), "--timeout", "0.5")
    assert (result.returncode, result.stdout) == (124, b"x")
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_machine_with_its_status(kernel: Kernel, number: int) -> None:
    words = command(kernel(say('"x"', end="jmp hang")))
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"x"
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert process.stderr.read().count(b"\n") == 1


# Gets the signal while the machine is being built.
EARLY = """
import os, sys
from kvmpy.cli.main import main
from kvmpy.machine import builder

recognise = builder.recognise

def interrupted(*words):
    os.kill(os.getpid(), int(sys.argv[1]))
    return recognise(*words)

builder.recognise = interrupted
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_before_the_machine_ends_it(kernel: Kernel, number: int) -> None:
    words = [sys.executable, "-c", EARLY, str(int(number)), *command(kernel(say('"x"', end="jmp hang")))[3:]]
    result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=90)
    assert (result.returncode, result.stdout) == (128 + number, b"")
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_script_that_is_never_done(kernel: Kernel, tmp_path: Path, number: int) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os\nos.write(1, b'x')\nwhile True:\n    pass\n")
    words = command(kernel(say('"y"')), "--script", str(script))
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"x"
        process.send_signal(number)
        assert process.wait(20) == -number
        assert process.stderr.read().count(b"\n") == 1


def test_a_signal_ends_a_machine_that_waits_for_a_slow_reader(kernel: Kernel) -> None:
    words = command(kernel(FLOOD))
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM


def test_a_reader_that_goes_ends_the_machine(kernel: Kernel) -> None:
    words = command(kernel(FLOOD))
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        process.wait(20)
        assert b"Traceback" not in process.stderr.read()


def test_a_disk_that_is_full_is_one_sentence(kernel: Kernel) -> None:
    with open("/dev/full", "wb") as full:
        result = boot(kernel(FLOOD), stdout=full)
    assert result.returncode == 1
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_reason_to_fail(kernel: Kernel, closed: str) -> None:
    result = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command(kernel(say('"x"')))], timeout=90)
    assert result.returncode == 0


def test_a_pipe_is_the_guests_input_escapes_included(kernel: Kernel) -> None:
    result = boot(kernel(ECHO + RESET), stdin=None, input=b"a\x01xq")
    assert (result.returncode, result.stdout) == (0, b">a\x01xq")


def test_a_file_is_the_guests_input(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"y" * 100 + b"q")
    with (tmp_path / "input").open("rb") as file:
        result = boot(kernel(ECHO + RESET), stdin=file)
    assert result.stdout == b">" + b"y" * 100 + b"q"


def test_the_report_has_the_end_the_times_and_the_exits(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    boot(kernel(say('"hello"')), "--report", str(path))
    report = json.loads(path.read_text())
    assert set(report) == {
        "exit", "timeline_ms", "exits", "ports", "mmio", "host_profile", "virtio", "vcpus", "memory_mib",
    }  # fmt: skip
    assert report["exit"] == {"status": 0, "reason": "reset", "message": ""}
    assert (report["ports"], report["mmio"]) == ({"0x64": 1, "0x3f8": 5}, {})
    assert report["exits"]["io"] == 6
    assert (report["vcpus"], report["memory_mib"]) == (1, 32)
    stages = ["start", "vm_created", "loaded", "first_run", "first_console_byte", "end"]
    times = [report["timeline_ms"][stage] for stage in stages]
    assert times[0] == 0
    assert times == sorted(times)
    assert set(report["host_profile"]) == {"kind", "ring0_ns", "ring3_ns", "pio_exit_ns"}


def test_the_report_of_a_kernel_that_is_none_says_host_error(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"not a kernel" * 100)
    result = boot(str(tmp_path / "kernel"), "--report", str(tmp_path / "report"))
    assert result.returncode == 1
    assert result.stderr.count(b"\n") == 1
    report = json.loads((tmp_path / "report").read_text())
    assert (report["exit"]["status"], report["exit"]["reason"]) == (1, "host-error")
    assert f"kvmpy: {report['exit']['message']}\n".encode() == result.stderr
    assert report["timeline_ms"]["first_run"] is None
    assert report["exits"] == {}


def test_verbose_says_on_standard_error_what_is_done(kernel: Kernel) -> None:
    result = boot(kernel(say('"x"')), "-v")
    assert result.stdout == b"x"
    assert b"32 MiB" in result.stderr


class Session(TerminalProcess):
    """`kvmpy boot` on a terminal of its own."""

    def end(self) -> int:
        """The status, with the terminal seen to be as it was."""
        status = self.wait()
        assert self.modes() == self.before
        return status


@pytest.fixture
def session(kernel: Kernel) -> Iterator[Callable[[str], Session]]:
    made: list[Session] = []

    def make(source: str) -> Session:
        made.append(Session(command(kernel(source))))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_keys_go_to_the_guest_and_ctrl_a_x_ends_with_status_0(session: Callable[[str], Session]) -> None:
    one = session(ECHO + RESET)
    one.expect(b">")
    one.send(b"a\x03\x1a\x01\x01b")
    one.expect(b"a\x03\x1a\x01b")
    one.send(b"\x01x")
    assert one.end() == 0


def test_ctrl_a_h_helps(session: Callable[[str], Session]) -> None:
    one = session(ECHO + RESET)
    one.expect(b">")
    one.send(b"\x01h")
    one.expect(b"end the machine")
    one.send(b"q")
    assert one.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_comes_back_after_a_signal(session: Callable[[str], Session], number: int) -> None:
    one = session(ECHO + RESET)
    one.expect(b">")
    one.signal(number)
    assert one.end() == 128 + number


def test_the_terminal_comes_back_after_a_crash_before_anything_is_said(session: Callable[[str], Session]) -> None:
    one = session(say('"x"', end="ud2"))
    one.expect(b"x\r\n\x1b[31mkvmpy:")
    assert one.end() == 3
