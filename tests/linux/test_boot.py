"""`kvmpy boot` with a real Linux, from the command to the exit status."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from kvmpy.testing.linux_init import init_panic, init_pattern, init_waiting, on_console, pattern

BOOT = (sys.executable, "-m", "kvmpy", "boot")
LONG_ENOUGH = 240  # Seconds in which a guest boots even where ring 0 is emulated and others use the machine.


@pytest.mark.parametrize("size", [128 << 10, pytest.param(1 << 20, marks=pytest.mark.full)])
def test_nothing_of_what_a_guest_prints_is_lost(kvmpy_boot, kernel, initrd, tmp_path, size):
    report = tmp_path / "report.json"
    init = initrd(init_pattern(size, message="and that was all\n"))
    done = kvmpy_boot(kernel, "-i", init, "-m", "64M", "--report", str(report))
    assert done.returncode == 0, done.stderr
    assert on_console(pattern(size) + b"and that was all\n") in done.stdout
    facts = json.loads(report.read_text())
    assert facts["exit"] == {"status": 0, "reason": "reset", "message": ""}
    assert facts["exits"]["io"] > size
    assert facts["ports"]["0x3f8"] > size
    assert facts["vcpus"] == 1
    assert facts["memory_mib"] == 64
    assert facts["host_profile"]["kind"] in ("hardware", "nested", "emulated-ring0")
    times = list(facts["timeline_ms"].values())
    assert times == sorted(times)
    assert times[0] == 0


def test_a_panic_ends_with_3_though_its_console_is_not_shown(kvmpy_boot, kernel_folder, initrd, tmp_path):
    report = tmp_path / "report.json"
    image = os.path.join(kernel_folder, "bzImage")
    words = ("-i", initrd(init_panic()), "-m", "64M", "--console", "none", "--report", str(report))
    done = kvmpy_boot(image, *words)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"Kernel panic - not syncing: Attempted to kill init!" in done.stderr
    end = json.loads(report.read_text())["exit"]
    assert (end["status"], end["reason"]) == (3, "panic")
    assert "Attempted to kill init!" in end["message"]


def test_a_guest_that_takes_too_long_ends_with_124(kvmpy_boot, kernel, initrd):
    started = time.monotonic()
    done = kvmpy_boot(kernel, "-i", initrd(init_waiting()), "-m", "64M", "--timeout", "1.5")
    assert done.returncode == 124
    assert b"still running after 1.5 s" in done.stderr
    assert time.monotonic() - started < LONG_ENOUGH / 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_128_and_its_number(kernel, initrd, number):
    words = [*BOOT, kernel, "-i", initrd(init_waiting()), "-m", "64M", "-v"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert b"kernel" in process.stderr.readline()  # Said when the machine is about to run.
        process.send_signal(number)
        assert process.wait(60) == 128 + number


class Terminal:
    """A pty with `kvmpy boot` on it: types, and waits for what appears."""

    def __init__(self, words):
        self.ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(theirs)
        self.screen = b""
        self.process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
        self.theirs = theirs

    def type(self, text):
        os.write(self.ours, text)

    def wait_for(self, text, seconds=LONG_ENOUGH):
        """Waits until `text` appears behind what was waited for before; gives what came up to its end."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come; the screen has {self.screen[-2000:]!r}"
            if select.select([self.ours], [], [], left)[0]:
                self.screen += os.read(self.ours, 65536)
        seen, self.screen = self.screen.split(text, 1)
        return seen + text

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal():
    opened = []

    def start(*words):
        opened.append(Terminal([*BOOT, *words]))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_shell_answers_what_is_typed_and_its_end_ends_the_machine(terminal, kernel):
    # No initrd: kvmpy's own, around busybox.
    screen = terminal(kernel, "-m", "64M")
    screen.wait_for(b"# ")
    assert termios.tcgetattr(screen.theirs) != screen.before  # Raw, while the guest has it.
    screen.type(b"echo $((6*7)) is the answer\n")
    screen.wait_for(b"42 is the answer")
    screen.wait_for(b"# ")
    screen.type(b"exit\n")
    assert screen.process.wait(LONG_ENOUGH) == 0
    assert termios.tcgetattr(screen.theirs) == screen.before


def test_ctrl_a_x_ends_a_machine_that_does_not_listen(terminal, kernel, initrd):
    screen = terminal(kernel, "-i", initrd(init_waiting()), "-m", "64M", "-v")
    screen.wait_for(b"kernel")
    screen.type(b"\x01h")
    screen.wait_for(b"Ctrl-A x", 30)
    screen.type(b"\x01x")
    assert screen.process.wait(60) == 0
    assert termios.tcgetattr(screen.theirs) == screen.before


def test_what_comes_down_a_pipe_reaches_the_shell_whole(kernel):
    lines = [f"echo $(({number} * 1000 + {number})) is line {number}" for number in range(1, 6)]
    words = [*BOOT, kernel, "-m", "64M", "--timeout", str(LONG_ENOUGH)]
    text = "\n".join([*lines, "exit", ""]).encode()
    done = subprocess.run(words, input=text, capture_output=True, timeout=2 * LONG_ENOUGH, check=False)
    assert done.returncode == 0, done.stderr
    for number in range(1, 6):
        assert f"{number * 1001} is line {number}".encode() in done.stdout
