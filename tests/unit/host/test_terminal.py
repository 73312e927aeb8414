"""The terminal of a real child process, from the other end of a pty."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator

import pytest

CHILD = """
import fcntl, os, sys, termios
from kvmpy.host.terminal import Terminal
from kvmpy.host.signals import EndSignals

fcntl.ioctl(0, termios.TIOCSCTTY, 0)

def say(text):
    os.write(1, text.encode() + b"\\n")

{body}
"""


class Child:
    """A process on a terminal of its own, as the leader of its session and in the foreground."""

    def __init__(self, body: str) -> None:
        self.seen = b""
        self.master, self.slave = pty.openpty()
        self.before = self.modes()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(body=body)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def modes(self) -> list[object]:
        return termios.tcgetattr(self.slave)

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def expect(self, text: bytes) -> None:
        while text not in self.seen:
            assert select.select([self.master], [], [], 20)[0], self.seen
            self.seen += os.read(self.master, 1000)
        self.seen = self.seen.partition(text)[2]

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def wait(self) -> int:
        return self.process.wait(20)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def child() -> Iterator[Callable[[str], Child]]:
    made: list[Child] = []

    def make(body: str) -> Child:
        made.append(Child(body))
        return made[-1]

    yield make
    for one in made:
        one.close()


WAIT = """
with Terminal():
    say("raw")
    os.read(0, 1)
say("back")
os.read(0, 1)
"""


def test_keys_come_at_once_and_unchanged_and_are_not_echoed(child: Callable[[str], Child]) -> None:
    one = child('with Terminal():\n    say("raw")\n    say(repr(os.read(0, 1)))\n    say(repr(os.read(0, 1)))')
    one.expect(b"raw\r\n")
    one.send(b"\x03")
    one.expect(b"b'\\x03'\r\n")
    one.send(b"\r")
    one.expect(b"b'\\r'")
    assert one.wait() == 0


def test_the_terminal_comes_back_on_leaving(child: Callable[[str], Child]) -> None:
    one = child(WAIT)
    one.expect(b"raw")
    assert one.is_raw
    one.send(b"x")
    one.expect(b"back")
    assert one.modes() == one.before


def test_it_comes_back_after_an_exception(child: Callable[[str], Child]) -> None:
    one = child('with Terminal():\n    say("raw")\n    raise OSError')
    one.expect(b"raw")
    one.expect(b"OSError")
    assert one.wait() == 1
    assert one.modes() == one.before


def test_it_comes_back_when_the_interpreter_just_exits(child: Callable[[str], Child]) -> None:
    one = child('terminal = Terminal().__enter__()\nsay("raw")\nos.read(0, 1)')
    one.expect(b"raw")
    assert one.is_raw
    one.send(b"x")
    assert one.wait() == 0
    assert one.modes() == one.before


SIGNALS = """
import threading
end = threading.Event()
terminal = Terminal()
with EndSignals(lambda number: {end}, terminal.restore), terminal:
    say("raw")
    end.wait()
say("ended")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_comes_back_after_a_signal(child: Callable[[str], Child], number: int) -> None:
    one = child(SIGNALS.format(end="end.set()"))
    one.expect(b"raw")
    one.signal(number)
    one.expect(b"ended")
    assert one.wait() == 0
    assert one.modes() == one.before


def test_the_second_signal_kills_and_the_terminal_still_comes_back(child: Callable[[str], Child]) -> None:
    one = child(SIGNALS.format(end='say("first")'))
    one.expect(b"raw")
    one.signal(signal.SIGTERM)
    one.expect(b"first")
    one.signal(signal.SIGTERM)
    assert one.wait() == -signal.SIGTERM
    assert one.modes() == one.before


def test_a_signal_that_was_ignored_stays_ignored(child: Callable[[str], Child]) -> None:
    body = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SIGNALS.format(end="end.set()")
    one = child(body)
    one.expect(b"raw")
    one.signal(signal.SIGHUP)
    one.signal(signal.SIGTERM)
    one.expect(b"ended")


# The child's process group is an orphaned one, which SIGTSTP does not stop; so its parent's place is taken by a shell
# of sorts, which starts it in a job of its own.
JOB = """
import signal, subprocess
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen([sys.executable, "-c", {program!r}], process_group=0)
os.tcsetpgrp(0, job.pid)
say(f"job {{job.pid}}.")
for _ in range({stops}):
    os.waitpid(job.pid, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpgrp())
    say("stopped")
    os.read(0, 1)
    os.tcsetpgrp(0, job.pid)
    os.kill(job.pid, signal.SIGCONT)
job.wait()
say("gone")
os.read(0, 1)
"""

PROGRAM = """
import os, sys, time
from kvmpy.host.terminal import Terminal
while os.tcgetpgrp(0) != os.getpgrp():
    time.sleep(0.001)
with Terminal():
    os.write(1, b"raw\\n")
    while os.read(0, 1) != b"q":
        os.write(1, b"key\\n")
"""


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGSTOP])
def test_a_stopped_process_goes_raw_again_in_the_foreground(child: Callable[[str], Child], number: int) -> None:
    one = child(JOB.format(program=PROGRAM, stops=2))
    one.expect(b"job ")
    while b"." not in one.seen:
        one.seen += os.read(one.master, 100)
    pid = int(one.seen.partition(b".")[0])
    one.expect(b"raw")
    for _ in range(2):
        assert one.is_raw
        os.kill(pid, number)
        one.expect(b"stopped")
        if number == signal.SIGTSTP:
            assert one.modes() == one.before
        else:
            termios.tcsetattr(one.slave, termios.TCSANOW, one.before)  # As a shell does.
        one.send(b"\n")
        # It is raw again before it reads: a key without a line's end arrives.
        while not one.is_raw:
            select.select([], [], [], 0.001)
        one.send(b"k")
        one.expect(b"key")
    one.send(b"q")
    one.expect(b"gone")
    assert one.modes() == one.before


def test_nothing_happens_where_there_is_no_terminal() -> None:
    from kvmpy.host.terminal import Terminal

    reader, writer = os.pipe()
    handler = signal.getsignal(signal.SIGTSTP)
    with Terminal(reader) as terminal:
        assert not terminal.is_terminal
        assert signal.getsignal(signal.SIGTSTP) == handler
    os.close(reader)
    os.close(writer)


def test_handlers_are_back_after_it(child: Callable[[str], Child]) -> None:
    body = """
import signal
numbers = (signal.SIGTSTP, signal.SIGCONT, signal.SIGTERM, signal.SIGINT)
before = [signal.getsignal(number) for number in numbers]
with EndSignals(print), Terminal():
    pass
say(str(before == [signal.getsignal(number) for number in numbers]))
"""
    child(body).expect(b"True")
