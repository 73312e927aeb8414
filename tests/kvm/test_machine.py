"""kvmpy.machine: tiny guests through the whole of a machine, from a file to an outcome."""

from __future__ import annotations

import fcntl
import os
import resource
import threading

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.errors import ConfigError, KvmpyError, StateError
from kvmpy.machine.builder import build
from kvmpy.machine.machine import CREATED, PAUSED, RUNNING, STOPPED
from kvmpy.machine.outcome import CRASH, DEBUG_EXIT, HOST_ERROR, SHUTDOWN, TIMEOUT, USER, Outcome
from kvmpy.testing.asm import assemble
from kvmpy.units import MIB, PAGE_SIZE

SOON = 20  # Seconds after which something that has to happen counts as failed.


@pytest.fixture
def guest(tmp_path):
    """Makes a machine of assembler source; its output goes to `machine.said`."""
    machines = []

    def make(source, protocol="flat16", **options):
        bits = int(protocol[4:6])
        origin = {16: 0x7C00, 32: MIB, 64: MIB}[bits]
        path = tmp_path / "guest.bin"
        path.write_bytes(assemble(source, bits=bits, origin=origin))
        reader, writer = os.pipe()
        config = MachineConfig(str(path), protocol=protocol, memory=2 * MIB, **options)
        machine = build(config, output_fd=writer)
        machines.append((machine, reader, writer))
        return machine

    yield make
    for machine, reader, writer in machines:
        machine.close()
        os.close(reader)
        os.close(writer)


def run(machine, timeout=SOON):
    return machine.run(timeout)


HELLO = """
    mov dx, 0x3f8
    mov si, text
    cld
next:
    lodsb
    test al, al
    jz done
    out dx, al
    jmp next
done:
    hlt
text: db "hello", 10, 0
"""


def test_a_guest_says_hello_and_halts(guest, tmp_path):
    path = tmp_path / "out"
    with open(path, "wb") as out:
        machine = guest(HELLO)
        machine.close()
        config = MachineConfig(str(tmp_path / "guest.bin"), protocol="flat16", memory=MIB)
        with build(config, output_fd=out.fileno()) as again:
            outcome = again.run(SOON)
    assert (outcome.reason, outcome.status) == (SHUTDOWN, 0)
    assert path.read_bytes() == b"hello\n"


@pytest.mark.parametrize(
    ("protocol", "proof"),
    [
        ("flat16", "mov eax, cr0\nand al, 1\nout 0xf4, al"),
        ("flat32", "mov eax, cr0\nand al, 1\nout 0xf4, al"),
        ("flat64", "mov rax, 0x1_0000_0002\nshr rax, 31\nout 0xf4, al".replace("_", "")),
    ],
)
def test_a_flat_guest_starts_in_the_mode_asked_for(guest, protocol, proof):
    outcome = run(guest(proof, protocol, debug_exit=0xF4))
    value = {"flat16": 0, "flat32": 1, "flat64": 2}[protocol]
    assert (outcome.reason, outcome.status) == (DEBUG_EXIT, (value << 1 | 1) & 255)


def test_debug_exit_wraps_as_a_process_status_does(guest):
    assert run(guest("mov al, 0xff\nout 0xf4, al\nhlt", debug_exit=0xF4)).status == 255


def test_string_output_reaches_the_device_element_by_element(guest):
    machine = guest("mov dx, 0x3f8\nmov si, text\nmov cx, 5\ncld\nrep outsb\nhlt\ntext: db 'abcde'")
    seen = []
    machine.serial.output = seen.append
    assert run(machine).reason == SHUTDOWN
    assert b"".join(seen) == b"abcde"


def test_ports_that_nobody_has_read_as_ones_and_are_counted(guest):
    machine = guest("mov dx, 0x1234\nin ax, dx\nout 0xf4, al\nhlt", debug_exit=0xF4)
    assert run(machine).status == 255
    stats = machine.vcpus[0].stats
    assert stats.ports == {0x1234: 1, 0xF4: 1}
    assert stats.exits()["io"] == 2


def test_memory_that_is_not_there_reads_as_ones(guest):
    machine = guest(
        "mov eax, [0x300000]\nadd eax, 2\nmov [0x300000], eax\nout 0xf4, al\nhlt", "flat32", debug_exit=0xF4
    )
    assert run(machine).status == 3
    assert machine.vcpus[0].stats.mmio == {0x300000: 2}


@pytest.mark.parametrize(
    ("protocol", "source"),
    [
        ("flat32", "lidt [empty]\nud2\nempty: dw 0\ndd 0"),
        ("flat64", "lidt [empty]\nud2\nempty: dw 0\ndq 0"),
    ],
)
def test_a_triple_fault_is_a_crash_with_registers(guest, protocol, source):
    outcome = run(guest(source, protocol))
    assert (outcome.reason, outcome.status) == (CRASH, 3)
    assert "triple fault" in outcome.message
    assert "rip" in outcome.details.lower()


def test_real_mode_code_that_nobody_can_run_is_a_crash(guest):
    # A processor triple-faults over it, an emulator gives up: either way the guest is at fault.
    outcome = run(guest("lidt [empty]\nud2\nempty: dw 0\ndd 0"))
    assert (outcome.reason, outcome.status) == (CRASH, 3)
    assert "rip" in outcome.details.lower()


def test_a_guest_that_never_ends_is_stopped_in_time(guest):
    outcome = run(guest("here: jmp here"), timeout=0.05)
    assert (outcome.reason, outcome.status) == (TIMEOUT, 124)


def test_a_guest_that_loops_on_exits_is_stopped_too(guest):
    outcome = run(guest("here: out 0x80, al\njmp here"), timeout=0.05)
    assert outcome.reason == TIMEOUT


def test_a_device_that_raises_ends_the_machine_with_its_traceback(guest):
    class Broken:
        def read(self, offset, data):
            raise ZeroDivisionError("by a mistake")

        write = read

    machine = guest("in al, 0x10\nhlt")
    machine.pio.add(0x10, 1, Broken())
    outcome = run(machine)
    assert (outcome.reason, outcome.status) == (HOST_ERROR, 1)
    assert "by a mistake" in outcome.message
    assert "Traceback" in outcome.details


def test_the_states_follow_each_other_and_no_other_way(guest):
    machine = guest("here: jmp here")
    assert machine.state == CREATED
    with pytest.raises(StateError):
        machine.wait()
    machine.start()
    assert machine.state == RUNNING
    with pytest.raises(StateError):
        machine.start()
    machine.stop()
    machine.stop()
    assert machine.state == STOPPED
    assert machine.wait().reason == USER


def test_the_first_end_counts(guest):
    machine = guest("here: jmp here")
    machine.start()
    machine.end(Outcome(USER))
    machine.end(Outcome(SHUTDOWN))
    assert machine.wait().reason == USER


def test_many_threads_may_stop_it_at_once(guest):
    machine = guest("here: out 0x80, al\njmp here")
    machine.start()
    threads = [threading.Thread(target=machine.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in threads)


def test_the_timeline_runs_forward(guest):
    machine = guest(HELLO)
    run(machine)
    times = machine.timeline.milliseconds()
    assert None not in times.values()
    assert list(times.values()) == sorted(times.values())


def test_nothing_is_left_behind_by_a_machine_that_ran(guest):
    first = guest(HELLO)
    run(first)
    first.close()  # Whatever is made once for the process is made now.
    before, threads = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    reader, writer = os.pipe()
    for _ in range(3):
        config = MachineConfig(first.config.kernel, protocol="flat16", memory=MIB)
        with build(config, input_fd=reader, output_fd=writer) as machine:
            machine.run(SOON)
    os.close(reader)
    os.close(writer)
    assert threading.active_count() == threads
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_nothing_is_left_behind_by_a_machine_that_cannot_be_built(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(b"\x7fELF" + os.urandom(2000))
    fds, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    with pytest.raises(KvmpyError):
        build(MachineConfig(str(path), memory=16 * MIB))
    with pytest.raises(ConfigError):
        build(MachineConfig(str(path), protocol="flat16@0xfffff", memory=MIB))
    assert set(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads


COUNTER = "here: inc dword [0x2000]\nout 0x80, al\njmp here"


def counter(machine):
    return int.from_bytes(machine.memory.read(0x2000, 4), "little")


def test_a_paused_machine_stands_still_and_runs_on(guest):
    machine = guest(COUNTER)
    machine.start()
    machine.pause()
    assert machine.state == PAUSED
    seen = counter(machine)
    rip = machine.vcpus[0].call(lambda vcpu: vcpu.regs().rip)
    assert counter(machine) == seen
    assert machine.vcpus[0].call(lambda vcpu: vcpu.regs().rip) == rip
    machine.pio.add(0x81, 1, machine.pio.find(0xE9).device)  # A change of the ports while it is paused.
    machine.resume()
    while counter(machine) == seen:
        os.sched_yield()
    machine.stop()


def test_a_thousand_pauses_lose_nothing(guest):
    machine = guest(COUNTER)
    machine.start()
    for _ in range(1000):
        seen = counter(machine)
        while counter(machine) == seen:
            os.sched_yield()
        machine.pause()
        machine.resume()
    machine.pause()
    writes = machine.vcpus[0].stats.ports[0x80]
    # Between `inc` and `out` it may stand; never further apart.
    assert counter(machine) - writes in (0, 1)
    assert machine.state == PAUSED
    machine.stop()


def test_an_in_that_is_under_way_is_completed_before_the_pause(guest):
    class Slow:
        def __init__(self):
            self.asked = threading.Event()
            self.go = threading.Event()

        def read(self, offset, data):
            self.asked.set()
            self.go.wait(SOON)
            data[0] = 0x5A

        def write(self, offset, data):
            pass

    machine, slow = guest("in al, 0x10\nhere: jmp here"), Slow()
    machine.pio.add(0x10, 1, slow)
    machine.start()
    assert slow.asked.wait(SOON)
    pauser = threading.Thread(target=machine.pause)
    pauser.start()
    slow.go.set()
    pauser.join(SOON)
    regs = machine.vcpus[0].call(lambda vcpu: vcpu.regs())
    assert regs.rax & 0xFF == 0x5A
    assert regs.rip == 0x7C02
    machine.stop()


def test_a_call_raises_to_its_caller_and_the_guest_goes_on(guest):
    machine = guest(COUNTER)
    machine.start()
    with pytest.raises(ZeroDivisionError):
        machine.vcpus[0].call(lambda vcpu: 1 // 0)
    assert machine.state == RUNNING
    machine.stop()
    assert machine.vcpus[0].call(lambda vcpu: vcpu.regs().rip) >= 0x7C00


def test_a_reader_who_never_reads_is_waited_for_no_longer_than_the_machine():
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE_SIZE)
    code = assemble("mov dx, 0x3f8\nmov cx, 5000\nnext: out dx, al\nloop next\nhlt", bits=16, origin=0x7C00)
    with build(MachineConfig(code, protocol="flat16"), output_fd=writer) as machine:
        assert machine.run(2).reason == SHUTDOWN
        assert machine.output.waiting == 5000 - PAGE_SIZE
    os.close(reader)
    os.close(writer)


def test_a_machine_can_be_ended_while_a_call_is_under_way(guest):
    machine = guest(COUNTER)
    machine.start()
    begun, ended = threading.Event(), threading.Event()

    def busy(vcpu):
        begun.set()
        return ended.wait(SOON)

    results = []
    caller = threading.Thread(target=lambda: results.append(machine.vcpus[0].call(busy)))
    caller.start()
    assert begun.wait(SOON)
    machine.end(Outcome(USER))
    ended.set()
    caller.join(SOON)
    assert results == [True]
    assert machine.wait().reason == USER


def test_a_call_may_end_the_machine_while_another_thread_pauses_it(guest):
    for _ in range(20):
        machine = guest(COUNTER)
        machine.start()
        threads = [
            threading.Thread(
                target=machine.vcpus[0].call, args=(lambda vcpu, machine=machine: machine.end(Outcome(USER)),)
            ),
            threading.Thread(target=machine.pause),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert not any(thread.is_alive() for thread in threads)
        assert machine.wait().reason == USER
        machine.close()


def test_a_paused_machine_can_be_stopped_and_timed_out(guest):
    machine = guest(COUNTER)
    machine.start()
    machine.pause()
    assert machine.wait(0.01).reason == TIMEOUT
    machine.pause()
    machine.resume()
    assert machine.state == STOPPED


RDMSR = "mov ecx, 0x12345678\nmov eax, 77\nrdmsr\nout 0xf4, al\nhlt"


def test_an_unknown_msr_reads_as_zero_where_that_is_asked_for(guest):
    machine = guest(RDMSR, "flat64", debug_exit=0xF4, msrs="zero")
    assert run(machine).status == 1
    assert machine.vcpus[0].context.msrs.reads == {0x12345678: 1}


def test_an_unknown_msr_faults_otherwise(guest):
    assert run(guest("lidt [empty]\n" + RDMSR + "\nempty: dw 0\ndq 0", "flat64", debug_exit=0xF4)).reason == CRASH


def test_whoever_waits_for_a_vcpu_that_ends_is_told(guest):
    for _ in range(30):
        machine = guest("mov cx, 200\nhere: loop here\nhlt")
        machine.start()
        waiters = [threading.Thread(target=machine.pause), threading.Thread(target=machine.vcpus[0].call, args=(id,))]
        for waiter in waiters:
            waiter.start()
        machine.resume()
        for waiter in waiters:
            waiter.join(SOON)
        assert not any(waiter.is_alive() for waiter in waiters)
        machine.close()


def test_a_host_that_is_out_of_files_is_one_sentence_and_leaves_nothing(tmp_path):
    path = tmp_path / "guest.bin"
    path.write_bytes(b"\xf4")
    open_now = len(os.listdir("/proc/self/fd"))
    first_free = os.dup(1)
    os.close(first_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in range(5):
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + more, hard))
        try:
            with pytest.raises(KvmpyError, match="Too many open files"):
                build(MachineConfig(str(path), protocol="flat16", memory=MIB)).close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) == open_now
