"""The terminal of a real child process, from the other end of a pty."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Callable, Iterator

import pytest

from kvmpy.testing.terminal import TerminalProcess

Make = Callable[[str], TerminalProcess]

CHILD = """
import os, sys
from kvmpy.host.terminal import Terminal
from kvmpy.host.signals import EndSignals

def say(text):
    os.write(1, text.encode() + b"\\n")

{body}
"""


@pytest.fixture
def child() -> Iterator[Make]:
    made: list[TerminalProcess] = []

    def make(body: str) -> TerminalProcess:
        made.append(TerminalProcess([sys.executable, "-c", CHILD.format(body=body)]))
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


def test_keys_come_at_once_and_unchanged_and_are_not_echoed(child: Make) -> None:
    one = child('with Terminal():\n    say("raw")\n    say(repr(os.read(0, 1)))\n    say(repr(os.read(0, 1)))')
    one.expect(b"raw\r\n")
    one.send(b"\x03")
    one.expect(b"b'\\x03'\r\n")
    one.send(b"\r")
    one.expect(b"b'\\r'")
    assert one.wait() == 0


def test_the_terminal_comes_back_on_leaving(child: Make) -> None:
    one = child(WAIT)
    one.expect(b"raw")
    assert one.is_raw
    one.send(b"x")
    one.expect(b"back")
    assert one.modes() == one.before


def test_it_comes_back_after_an_exception(child: Make) -> None:
    one = child('with Terminal():\n    say("raw")\n    raise OSError')
    one.expect(b"raw")
    one.expect(b"OSError")
    assert one.wait() == 1
    assert one.modes() == one.before


def test_it_comes_back_when_the_interpreter_just_exits(child: Make) -> None:
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
def test_it_comes_back_after_a_signal(child: Make, number: int) -> None:
    one = child(SIGNALS.format(end="end.set()"))
    one.expect(b"raw")
    one.signal(number)
    one.expect(b"ended")
    assert one.wait() == 0
    assert one.modes() == one.before


def test_the_second_signal_kills_and_the_terminal_still_comes_back(child: Make) -> None:
    one = child(SIGNALS.format(end='say("first")'))
    one.expect(b"raw")
    one.signal(signal.SIGTERM)
    one.expect(b"first")
    one.signal(signal.SIGTERM)
    assert one.wait() == -signal.SIGTERM
    assert one.modes() == one.before


def test_a_signal_that_was_ignored_stays_ignored(child: Make) -> None:
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
def test_a_stopped_process_goes_raw_again_in_the_foreground(child: Make, number: int) -> None:
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


def test_handlers_are_back_after_it(child: Make) -> None:
    body = """
import signal
numbers = (signal.SIGTSTP, signal.SIGCONT, signal.SIGTERM, signal.SIGINT)
before = [signal.getsignal(number) for number in numbers]
with EndSignals(print), Terminal():
    pass
say(str(before == [signal.getsignal(number) for number in numbers]))
"""
    child(body).expect(b"True")
