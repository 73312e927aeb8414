"""kvmpy.machine.reactor: the thread that waits for the host's fds."""

from __future__ import annotations

import os
import queue
import select
import threading

import pytest

from kvmpy.machine.reactor import Reactor

SOON = 10  # Seconds after which an event that has to come counts as lost.


@pytest.fixture
def errors():
    return queue.Queue()


@pytest.fixture
def reactor(errors):
    with Reactor(errors.put) as opened:
        yield opened


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_it_costs_no_thread_before_it_has_something_to_wait_for(errors):
    before = threading.active_count()
    with Reactor(errors.put):
        assert threading.active_count() == before


def test_a_ready_fd_calls_back_in_the_reactor_thread(reactor, pipe):
    seen = queue.Queue()
    reactor.add(
        pipe[0], select.EPOLLIN, lambda events: seen.put((os.read(pipe[0], 10), threading.current_thread().name))
    )
    os.write(pipe[1], b"ping")
    assert seen.get(timeout=SOON) == (b"ping", "kvmpy-reactor")


def test_a_removed_fd_calls_back_no_more(reactor, pipe):
    seen = queue.Queue()
    reactor.add(pipe[0], select.EPOLLIN, seen.put)
    reactor.remove(pipe[0])
    os.write(pipe[1], b"ping")
    reactor.call_soon(lambda: seen.put("after"))
    assert seen.get(timeout=SOON) == "after"


def test_a_file_that_cannot_be_waited_for_is_refused(reactor, tmp_path):
    with open(tmp_path / "file", "wb") as file, pytest.raises(PermissionError):
        reactor.add(file.fileno(), select.EPOLLOUT, print)


def test_a_callback_that_raises_is_reported_once_and_the_others_go_on(reactor, errors, pipe):
    def fail(events):
        raise ValueError("no")

    reactor.add(pipe[0], select.EPOLLIN, fail)
    os.write(pipe[1], b"ping")
    assert isinstance(errors.get(timeout=SOON), ValueError)
    seen = queue.Queue()
    reactor.call_soon(lambda: seen.put("alive"))
    assert seen.get(timeout=SOON) == "alive"
    assert errors.empty()


def test_close_waits_for_the_thread_and_leaves_no_fd(errors):
    fds, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    reactor = Reactor(errors.put)
    reactor.call_soon(lambda: None)
    reactor.close()
    reactor.close()
    assert set(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads


def test_close_from_a_callback_of_its_own_does_not_wait_for_itself(errors):
    reactor, closed = Reactor(errors.put), threading.Event()

    def close():
        reactor.close()
        closed.set()

    reactor.call_soon(close)
    assert closed.wait(SOON)
    assert errors.empty()
