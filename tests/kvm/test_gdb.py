"""kvmpy.machine.gdb: gdb itself, and clients that behave worse, against machines with tiny guests."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpy.config.machine import MachineConfig
from kvmpy.errors import ConfigError
from kvmpy.machine.builder import build
from kvmpy.machine.gdb.address import GdbAddress, parse_address
from kvmpy.machine.gdb.connection import MAX_AHEAD
from kvmpy.machine.gdb.packets import ACKNOWLEDGED, MAX_PACKET, REFUSED, PacketReader, encode
from kvmpy.machine.gdb.server import GdbServer
from kvmpy.machine.gdb.session import MAX_BREAKPOINTS, Leave, Run, Session
from kvmpy.machine.machine import RUNNING, STOPPED
from kvmpy.machine.outcome import CRASH, DEBUG_EXIT, USER
from kvmpy.testing.asm import assemble
from kvmpy.units import MIB

SOON = 20  # Seconds after which something that has to happen counts as failed.

ORIGIN = {"flat16": 0x7C00, "flat32": MIB, "flat64": MIB}

# At 0x100011 the loop, which runs until RBX is 8; the exit status is 7.
LONG = """
    mov rax, 0x1122334455667788
    mov rbx, 5
again:
    add rbx, 1
    cmp rbx, 8
    jne again
    mov [0x3000], rbx
    mov al, 3
    out 0xf4, al
"""
LOOP = 0x100011

# Counts at 0x2000 until somebody writes to 0x2008.
COUNTER = """
again:
    inc dword [0x2000]
    cmp dword [0x2008], 0
    je again
    mov al, 4
    out 0xf4, al
"""


@pytest.fixture
def stub(tmp_path):
    """Makes a machine of assembler source that stands before its first instruction, and a stub that is started."""
    with ExitStack() as stack:

        def make(source, protocol="flat64", vcpus=1, address=None):
            code = assemble(source, bits=int(protocol[4:]), origin=ORIGIN[protocol])
            config = MachineConfig(code, protocol=protocol, memory=2 * MIB, vcpus=vcpus, debug_exit=0xF4)
            machine = stack.enter_context(build(config))
            for thread in machine.vcpus[1:]:
                machine.entry.apply(thread.vcpu)
            server = stack.enter_context(GdbServer(machine, address or GdbAddress(path=str(tmp_path / "gdb"))))
            machine.start(paused=True)
            server.start()
            return machine, server

        yield make


def gdb(server, *commands):
    """What gdb says to `commands`, after it has connected."""
    arguments = ["gdb", "-nx", "-q", "-batch", "-ex", f"target remote {server.address}"]
    for command in commands:
        arguments += ["-ex", command]
    # Its caches and its history belong to nobody here.
    environment = {**os.environ, "HOME": "/nonexistent"}
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=environment
    )
    return done.stdout + done.stderr


class Client:
    """A client by hand: packets out, answers in."""

    def __init__(self, server):
        path = server.address.path
        self.socket = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.socket.settimeout(SOON)
        self.socket.connect(path or (server.address.host, server.address.port))
        self.events = []
        self.reader = PacketReader()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *packets):
        self.socket.sendall(b"".join(encode(packet) for packet in packets))

    def event(self):
        """The next packet or acknowledgement; None when the other side is gone."""
        while not self.events:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.events += self.reader.feed(data)
        return self.events.pop(0)

    def packet(self):
        while True:
            event = self.event()
            if event is None or isinstance(event, bytes):
                return event

    def ask(self, packet):
        self.send(packet)
        return self.packet()

    def read(self, address, length=4):
        return int.from_bytes(bytes.fromhex(self.ask(b"m%x,%x" % (address, length)).decode()), "little")


def counter(machine):
    return int.from_bytes(machine.memory.read(0x2000, 4), "little")


def wait_for_count(machine):
    seen = counter(machine)
    while counter(machine) == seen:
        os.sched_yield()


# --- gdb itself


def test_gdb_reads_steps_and_runs_to_the_end(stub):
    machine, server = stub(LONG)
    said = gdb(
        server,
        "print/x $rip",
        "stepi",
        "stepi",
        "print/x $rax",
        "print $cs",
        "print $eflags",
        "print $fctrl",
        "continue",
    )
    assert "$1 = 0x100000" in said
    assert "$2 = 0x1122334455667788" in said
    assert "$3 = 16" in said
    assert "$4 = [ ]" in said
    assert "exited with code 07" in said
    assert (machine.wait(SOON).reason, machine.outcome.status) == (DEBUG_EXIT, 7)


def test_gdb_stops_at_breakpoints_and_changes_what_it_finds(stub):
    machine, server = stub(LONG)
    said = gdb(
        server,
        f"break *{LOOP:#x}",
        "continue",
        "print $rbx",
        "continue",
        "print $rbx",
        "x/2xb $pc",
        "set $rbx = 7",
        "set $xmm3.v2_int64[1] = 1",
        "set {long}0x3008 = 0x42",
        "print/x {long}0x3008",
        "delete",
        "continue",
    )
    assert said.count(f"Breakpoint 1, 0x{LOOP:016x}") == 2
    assert "$1 = 5" in said
    assert "$2 = 6" in said
    # Not the breakpoint, but what it stands for.
    assert "0x48\t0x83" in said
    assert "$3 = 0x42" in said
    assert "exited with code 07" in said
    assert machine.memory.read(0x3008, 8) == (0x42).to_bytes(8, "little")
    assert machine.memory.read(0x3000, 1) == b"\x08"


def test_gdb_sets_vector_and_x87_registers(stub):
    _, server = stub(LONG)
    said = gdb(
        server,
        "set $xmm3.uint128 = 0x1234567890",
        "set $mxcsr = 0x1f00",
        "set $fctrl = 0x27f",
        "set $st1 = 1.5",
        "stepi",
        "print/x $xmm3.uint128",
        "print/x $mxcsr",
        "print/x $fctrl",
        "print $st1",
    )
    for line in ("$1 = 0x1234567890", "$2 = 0x1f00", "$3 = 0x27f", "$4 = 1.5"):
        assert line in said


def test_gdb_asks_the_monitor(stub):
    _, server = stub(LONG)
    said = gdb(server, "stepi", "monitor help", "monitor exits", "monitor nonsense")
    assert "exits: what each vCPU left the guest for" in said
    assert "vCPU 0: " in said
    assert "there is no command 'nonsense'" in said


def test_gdb_says_where_there_is_no_memory(stub):
    _, server = stub(LONG)
    said = gdb(server, "x/x 0x10000000", "x/x 0xffff800000000000", "x/xb 0x1fffff")
    assert "Cannot access memory at address 0x10000000" in said
    assert "Cannot access memory at address 0xffff800000000000" in said
    assert "0x1fffff:\t0x00" in said


def test_gdb_detaches_and_the_machine_runs_on_without_its_breakpoints(stub):
    machine, server = stub(LONG)
    said = gdb(server, f"break *{LOOP:#x}", "continue", "detach")
    assert "Breakpoint 1, " in said
    assert "detached" in said
    assert (machine.wait(SOON).reason, machine.outcome.status) == (DEBUG_EXIT, 7)


def test_gdb_kills_the_machine(stub):
    machine, server = stub(COUNTER)
    gdb(server, "stepi", "kill")
    assert machine.wait(SOON).reason == USER


def test_gdb_sees_each_vcpu_as_a_thread(stub):
    _, server = stub(LONG, vcpus=2)
    said = gdb(server, "info threads", "thread 2", "stepi", "print/x $rip", "thread 1", "print/x $rip")
    assert "Thread 1 (vCPU 0, 64-bit, ring 0)" in said
    assert "Thread 2 (vCPU 1, 64-bit, ring 0)" in said
    assert "$1 = 0x10000a" in said
    assert "$2 = 0x100000" in said


def test_gdb_stops_whichever_vcpu_comes_to_a_breakpoint(stub):
    machine, server = stub(
        """
            cmp rsp, 0x1000
            je other
        here:
            jmp here
        other:
            nop
            mov al, 3
            out 0xf4, al
        """,
        vcpus=2,
    )
    regs = machine.vcpus[1].call(lambda vcpu: vcpu.regs())
    regs.rsp = 0x1000
    machine.vcpus[1].call(lambda vcpu: vcpu.set_regs(regs))
    said = gdb(server, "break *0x10000b", "continue", "print $rsp", "continue")
    assert "Thread 2 hit Breakpoint 1" in said
    assert "$1 = (void *) 0x1000" in said
    assert "exited with code 07" in said


def test_gdb_in_protected_mode(stub):
    _, server = stub("mov ebx, 0x12345678\nnop\nmov al, 3\nout 0xf4, al", "flat32")
    said = gdb(server, "break *0x100005", "continue", "print/x $rbx", "info threads", "stepi", "continue")
    assert "Breakpoint 1, 0x0000000000100005" in said
    assert "$1 = 0x12345678" in said
    assert "vCPU 0, 32-bit, ring 0" in said
    assert "exited with code 07" in said


def test_gdb_in_real_mode_with_a_segment(stub):
    machine, server = stub("jmp 0x07c0:inner - 0x7c00\ninner: mov bx, 0x1234\nnop\nmov al, 3\nout 0xf4, al", "flat16")
    said = gdb(
        server,
        "break *0x7c08",
        "continue",
        "print/x $rip",
        "print/x $cs",
        "print/x $rbx & 0xffff",
        "info threads",
        "set $rip = 0x7c05",
        "stepi",
        "continue",
    )
    assert "Breakpoint 1, 0x0000000000007c08" in said
    assert "$1 = 0x7c08" in said
    assert "$2 = 0x7c0" in said
    assert "$3 = 0x1234" in said
    assert "vCPU 0, 16-bit, ring 0" in said
    assert "exited with code 07" in said
    assert machine.wait(SOON).status == 7


def test_gdb_over_tcp(stub):
    _, server = stub(LONG, address=parse_address(":0"))
    assert server.address.port != 0
    assert "exited with code 07" in gdb(server, "continue")


# --- clients by hand


def test_a_stub_waits_for_its_client_and_answers_why_it_stands(stub):
    machine, server = stub(COUNTER)
    with Client(server) as client:
        assert client.ask(b"?").startswith(b"T05thread:1;")
        assert client.ask(b"qC") == b"QC1"
        assert counter(machine) == 0


def test_each_packet_is_acknowledged_until_the_client_wants_it_no_more(stub):
    _, server = stub(COUNTER)
    with Client(server) as client:
        client.send(b"qC")
        assert [client.event(), client.event()] == [ACKNOWLEDGED, b"QC1"]
        client.socket.sendall(b"$qC#00")
        assert client.event() == REFUSED
        client.socket.sendall(b"-")
        assert client.event() == b"QC1"
        client.send(b"QStartNoAckMode")
        assert [client.event(), client.event()] == [ACKNOWLEDGED, b"OK"]
        client.socket.sendall(b"$qC#00")
        client.send(b"qC")
        assert client.event() == b"QC1"


def test_a_client_interrupts_as_often_as_it_likes(stub):
    machine, server = stub(COUNTER)
    with Client(server) as client:
        for _ in range(100):
            seen = client.read(0x2000)
            client.send(b"vCont;c")
            while counter(machine) == seen:
                os.sched_yield()
            client.socket.sendall(b"\x03")
            assert client.packet().startswith(b"T02thread:1;")


def test_an_interrupt_right_behind_its_command_is_heard(stub):
    _, server = stub(COUNTER)
    with Client(server) as client:
        for _ in range(20):
            client.socket.sendall(encode(b"vCont;c") + b"\x03")
            assert client.packet().startswith(b"T02")


def test_an_interrupt_while_the_guest_stands_is_nothing(stub):
    _, server = stub(LONG)
    with Client(server) as client:
        client.socket.sendall(b"\x03")
        assert client.ask(b"vCont;s:1").startswith(b"T05")
        assert client.ask(b"vCont;c") == b"W07"


def test_interrupts_and_breakpoints_at_once_lose_no_stop(stub):
    _, server = stub(COUNTER)
    with Client(server) as client:
        client.ask(b"Z0,100000,1")
        for _ in range(50):
            seen = client.read(0x2000)
            client.socket.sendall(encode(b"vCont;c") + b"\x03")
            stop = client.packet()
            assert stop[:3] in (b"T02", b"T05")
            assert client.read(0x2000) - seen in (0, 1)


def test_a_machine_that_runs_stops_for_a_client_and_runs_on_after_it(stub):
    machine, server = stub(COUNTER)
    machine.resume()
    wait_for_count(machine)
    with Client(server) as client:
        client.ask(b"?")
        seen = counter(machine)
        assert client.read(0x2000) == seen
        assert counter(machine) == seen
    wait_for_count(machine)
    assert machine.state == RUNNING


@pytest.mark.parametrize("command", [b"qC", b"vCont;c", b"vCont;s"], ids=bytes.decode)
def test_a_client_that_vanishes_leaves_no_breakpoint(stub, command):
    machine, server = stub(COUNTER)
    code = machine.memory.read(MIB, 16)
    with Client(server) as client:
        assert client.ask(b"Z0,100007,1") == b"OK"
        client.send(command)
    with Client(server) as client:  # Served when the first one's end has been seen.
        client.ask(b"?")
        assert machine.memory.read(MIB, 16) == code
    wait_for_count(machine)
    machine.memory.write(0x2008, b"\1")
    assert machine.wait(SOON).status == 9


def test_a_second_client_is_turned_away(stub):
    _, server = stub(COUNTER)
    with Client(server) as first:
        first.ask(b"?")
        with Client(server) as second:
            assert second.packet() is None
        first.send(b"vCont;c")
        with Client(server) as third:
            assert third.packet() is None
        first.socket.sendall(b"\x03")
        assert first.packet().startswith(b"T02")


def test_a_debugger_of_a_script_keeps_clients_out(stub):
    machine, server = stub(COUNTER)
    with machine.debugger(), Client(server) as client:
        assert client.packet() is None
    with Client(server) as client:
        assert client.ask(b"?").startswith(b"T05")


def test_only_software_breakpoints_are_supported(stub):
    _, server = stub(LONG)
    with Client(server) as client:
        for kind in b"1234":
            assert client.ask(b"Z%c,100000,1" % kind) == b""
            assert client.ask(b"z%c,100000,1" % kind) == b""


def test_breakpoints_are_set_once_and_bounded(stub):
    machine, server = stub(LONG)
    with Client(server) as client:
        for number in range(MAX_BREAKPOINTS):
            assert client.ask(b"Z0,%x,1" % (0x110000 + number)) == b"OK"
        assert client.ask(b"Z0,110000,1") == b"OK"
        assert client.ask(b"Z0,100000,1") == b"E0c"
        assert client.ask(b"z0,110000,1") == b"OK"
        assert client.ask(b"z0,110000,1") == b"OK"
        assert client.ask(b"Z0,100011,1") == b"OK"
        assert client.ask(b"Z0,10000000,1") == b"E0c"
        assert client.ask(b"vCont;c").startswith(b"T05")
        assert machine.memory.read(0x110001, 2) == b"\0\0"


def test_a_breakpoint_where_no_memory_is_is_an_error(stub):
    _, server = stub(LONG)
    with Client(server) as client:
        assert client.ask(b"Z0,10000000,1") == b"E0e"


def test_reads_end_where_memory_does(stub):
    _, server = stub(LONG)
    with Client(server) as client:
        assert client.ask(b"m1ffffe,8") == b"0000"
        assert client.ask(b"m200000,8") == b"E0e"
        assert len(client.ask(b"m0,ffffffff")) <= MAX_PACKET


def test_memory_is_written_in_digits_and_in_bytes(stub):
    machine, server = stub(LONG)
    with Client(server) as client:
        assert client.ask(b"M3000,4:01020304") == b"OK"
        assert client.ask(b"X3004,4:$#}*") == b"OK"
        assert client.ask(b"X3008,0:") == b"OK"
        assert machine.memory.read(0x3000, 8) == b"\1\2\3\4$#}*"
        assert client.ask(b"M1ffffe,4:01020304") == b"E0e"
        assert machine.memory.read(0x1FFFFE, 2) == b"\0\0"
        assert client.ask(b"M3000,4:010203") == b"E16"


def test_all_registers_are_written_at_once(stub):
    _, server = stub(LONG)
    with Client(server) as client:
        before = client.ask(b"g")
        changed = b"efbeadde00000000" + before[16:]
        assert client.ask(b"G" + changed) == b"OK"
        assert client.ask(b"g") == changed
        assert client.ask(b"p0") == b"efbeadde00000000"
        assert client.ask(b"P0=0100000000000000") == b"OK"
        assert client.ask(b"p0") == b"0100000000000000"


def test_a_step_stays_with_its_vcpu(stub):
    _, server = stub(LONG, vcpus=2)
    with Client(server) as client:
        assert client.ask(b"vCont;s:2;c").startswith(b"T05thread:2;")
        assert client.ask(b"Hg1") == b"OK"
        assert client.ask(b"p10") == b"0000100000000000"
        assert client.ask(b"Hc2") == b"OK"
        assert client.ask(b"s").startswith(b"T05thread:2;")
        assert client.ask(b"Hc0") == b"OK"
        # Some running while others stand is what this stub cannot do.
        assert client.ask(b"vCont;c:1") == b"E01"
        assert client.ask(b"vCont;t:1").startswith(b"T05thread:2;")
        assert client.ask(b"T2") == b"OK"
        assert client.ask(b"T3") == b"E16"


def test_continue_and_step_take_an_address_and_a_signal(stub):
    _, server = stub(LONG)
    with Client(server) as client:
        assert b"10:1100100000000000;" in client.ask(b"s10000a")
        assert b"10:1500100000000000;" in client.ask(b"S05")
        assert b"10:0a00100000000000;" in client.ask(b"S05;100000")
        assert client.ask(b"C05") == b"W07"


def test_a_crash_is_told_before_the_end(stub):
    machine, server = stub("lidt [0x5000]\nud2")
    with Client(server) as client:
        client.send(b"vCont;c")
        assert bytes.fromhex(client.packet()[1:].decode()) == b"the guest crashed with a triple fault\n"
        assert client.packet() == b"W03"
        assert client.ask(b"?") == b"W03"
        assert client.ask(b"vCont;c") == b"E01"
        assert client.ask(b"k") is None
    assert machine.outcome.reason == CRASH


def test_a_machine_that_is_stopped_was_killed(stub):
    machine, server = stub(COUNTER)
    with Client(server) as client:
        client.send(b"vCont;c")
        wait_for_count(machine)
        machine.close()
        assert client.packet() == b"X09"
        server.close()
        assert client.packet() is None


def test_a_machine_that_ends_while_it_stands_says_so_when_it_is_to_go_on(stub):
    machine, server = stub(COUNTER)
    with Client(server) as client:
        client.ask(b"?")
        machine.stop()
        assert client.ask(b"g")
        assert client.ask(b"vCont;s:1") == b"X09"


def test_who_comes_after_the_end_hears_of_it(stub):
    machine, server = stub(LONG)
    machine.resume()
    machine.wait(SOON)
    with Client(server) as client:
        assert client.ask(b"?") == b"W07"


def test_a_stub_that_is_closed_lets_the_machine_run(stub):
    machine, server = stub(COUNTER)
    with Client(server) as client:
        assert client.ask(b"Z0,100007,1") == b"OK"
        assert client.ask(b"vCont;c").startswith(b"T05")
        server.close()
        server.close()
        assert client.packet() is None
    wait_for_count(machine)
    assert machine.state == RUNNING


def test_packets_that_are_too_long_are_refused(stub):
    _, server = stub(COUNTER)
    with Client(server) as client:
        assert client.ask(b"m" * (MAX_PACKET + 1)) == b"E16"
        assert client.ask(b"qC") == b"QC1"


def test_who_talks_for_long_while_the_guest_stands_is_heard_to_the_end(stub):
    _, server = stub(COUNTER)
    with Client(server) as client:
        written = bytes(4096)
        for start in range(MIB, MIB + 64 * len(written), len(written)):
            assert client.ask(b"M%x,%x:%b" % (start, len(written), written.hex().encode())) == b"OK"


def test_who_talks_without_end_while_the_guest_runs_is_sent_away(stub):
    machine, server = stub(COUNTER)
    with Client(server) as client:
        client.send(b"vCont;c")
        wait_for_count(machine)
        try:
            client.socket.sendall(b"$" * (MAX_AHEAD + 100_000))
        except OSError:
            pass
        while client.packet() is not None:
            pass
    wait_for_count(machine)


def test_a_machine_whose_configuration_names_an_address_waits_there(tmp_path):
    code = assemble(LONG, bits=64, origin=MIB)
    path = str(tmp_path / "gdb")
    with build(MachineConfig(code, protocol="flat64", memory=2 * MIB, debug_exit=0xF4, gdb=path)) as machine:
        machine.start()
        with Client(machine.gdb) as client:
            assert b"10:0000100000000000;" in client.ask(b"?")
            assert client.ask(b"vCont;c") == b"W07"
        assert machine.wait(SOON).status == 7
    assert not os.path.exists(path)


def test_an_address_that_is_none_builds_no_machine():
    with pytest.raises(ConfigError, match="gdb: "):
        build(MachineConfig(b"\xf4", protocol="flat16", gdb="tcp:0.0.0.0:1"))


# --- the socket


def test_a_socket_is_its_owners_and_goes_with_the_stub(stub):
    _, server = stub(COUNTER)
    path = server.address.path
    assert os.stat(path).st_mode & 0o777 == 0o600
    server.close()
    assert not os.path.exists(path)


def test_a_socket_that_a_killed_owner_left_is_taken_over(stub, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "gdb"))
    _, server = stub(LONG)
    with Client(server) as client:
        assert client.ask(b"qC") == b"QC1"


def test_what_others_use_is_left_to_them(stub, tmp_path):
    machine, server = stub(COUNTER)
    (tmp_path / "file").write_text("mine")
    for path in (server.address.path, str(tmp_path / "file"), str(tmp_path / "none" / "gdb")):
        with pytest.raises(ConfigError, match="nobody can listen at"):
            GdbServer(machine, GdbAddress(path=path))
    assert (tmp_path / "file").read_text() == "mine"
    machine.resume()
    wait_for_count(machine)


def test_nothing_is_left_behind(stub, tmp_path):
    before = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    code = assemble(LONG, bits=64, origin=MIB)
    for is_used in (False, True, True):
        with build(MachineConfig(code, protocol="flat64", memory=2 * MIB, debug_exit=0xF4)) as machine:
            server = machine.stack.enter_context(GdbServer(machine, GdbAddress(path=str(tmp_path / "own"))))
            if is_used:
                machine.start(paused=True)
                server.start()
                with Client(server) as client:
                    client.ask(b"Z0,100011,1")
                    client.ask(b"vCont;c")
                    machine.close()
                    assert client.packet() is None
                assert machine.state == STOPPED
    assert (sorted(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert os.listdir(tmp_path) == []


# --- whatever a client may send

_PIECES = st.sampled_from(
    b"m M X g G p P Z0, z0, H T qXfer:features:read:target.xml: qRcmd, qSupported: qThreadExtraInfo, "
    b"vCont; vCont;s: C S s c ? D k , : ; = -1 0 1 100000 ffffffffffffffff 6578697473 \xff \0".split(b" ")
)


@pytest.fixture(scope="module")
def standing():
    """A debugger that holds a machine before its first instruction."""
    code = assemble(COUNTER, bits=64, origin=MIB)
    with build(MachineConfig(code, protocol="flat64", memory=2 * MIB)) as machine, machine.debugger() as debugger:
        yield debugger


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_PIECES | st.binary(max_size=8), max_size=8))
def test_no_packet_raises(standing, pieces):
    answer = Session(standing).handle(b"".join(pieces))
    assert isinstance(answer, (bytes, Run, Leave))
    if isinstance(answer, bytes):
        assert len(encode(answer)) <= MAX_PACKET + 4
