"""What gdb's commands mean for the machine: a packet's data in, its answer out, by way of the debugger.

A vCPU is a thread, numbered from 1.  All stop together and run on together; only a step runs one vCPU by itself while
the others stand still, even where gdb would let them run meanwhile.

GDB manual, "Packets" and "General Query Packets".
"""

from __future__ import annotations

from binascii import unhexlify
from functools import partial

from kvmpy.errors import KvmpyError
from kvmpy.machine.gdb.monitor import monitor
from kvmpy.machine.gdb.packets import MAX_PACKET
from kvmpy.machine.gdb.target import EXPEDITED, REGISTERS, description, to_hex
from kvmpy.machine.outcome import GUEST_ENDS
from kvmpy.machine.script.debugger import BREAKPOINT, END, PAUSE
from kvmpy.machine.script.memory import NotMappedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.machine.script.debugger import Breakpoint, Debugger, Stop
    from kvmpy.machine.script.registers import Registers

MAX_BREAKPOINTS = 1024

# Errors are numbers of two digits that gdb only shows; these are the host's errno for the same.
INVALID = b"E16"
FAULT = b"E0e"
FULL = b"E0c"
REFUSED = b"E01"

UNSUPPORTED = b""
OK = b"OK"

_SIGINT = 2
_SIGTRAP = 5
_SIGKILL = 9

_WORD = 16  # Digits of the longest number.

# Hexadecimal digits and binary escapes both double the bytes; a letter comes before them.
_CHUNK = MAX_PACKET // 2 - 1


class Run:
    """An answer that comes when the guest stops: what `function` returns goes to `Session.stopped`."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], Stop | None]) -> None:
        self.function = function


class Leave:
    """The client's last word: `reply` is to be sent, if there is one, and with `kill` the machine to be ended."""

    __slots__ = ("kill", "reply")

    def __init__(self, reply: bytes | None, *, kill: bool) -> None:
        self.reply = reply
        self.kill = kill


class _InvalidError(Exception):
    """A packet that does not have the form of its kind."""


class Session:
    """One client's view of a machine that `debugger` holds.

    `handle` never raises for what a client can send; whatever it cannot make sense of is answered as the protocol
    says.  `without_acks` is what the client asked for.
    """

    def __init__(self, debugger: Debugger) -> None:
        self._debugger = debugger
        self._machine = debugger.machine
        self.without_acks = False
        self._tells_breakpoints = False
        self._breakpoints: dict[int, Breakpoint] = {}
        # The vCPU that g, m and their like are about, and the one that c and s without a thread are.
        self._vcpu = 0
        self._stepped: int | None = None
        stop = debugger.last or debugger.wait()
        assert stop is not None
        self._last = self._describe(stop, _SIGTRAP)

    def handle(self, packet: bytes) -> bytes | Run | Leave:
        """The answer to a packet's data: data to send at once, or what to do for it."""
        command = _COMMANDS.get(packet[:1])
        if command is None:
            return UNSUPPORTED
        try:
            return command(self, packet[1:])
        except _InvalidError:
            return INVALID
        except NotMappedError:
            return FAULT
        except KvmpyError:
            return REFUSED

    def stopped(self, stop: Stop) -> list[bytes]:
        """What answers a `Run`: the stop reply, and before it the sentence that a machine may have ended with."""
        self._last = self._describe(stop, _SIGINT if stop.reason == PAUSE else _SIGTRAP)
        message = stop.outcome.message if stop.outcome is not None else ""
        said = [b"O" + f"{message}\n".encode()[:_CHUNK].hex().encode()] if message else []
        return [*said, self._last]

    def _describe(self, stop: Stop, signal: int) -> bytes:
        if stop.reason == END:
            outcome = stop.outcome
            assert outcome is not None
            ended_itself = outcome.reason in GUEST_ENDS
            return b"W%02x" % (outcome.status & 0xFF) if ended_itself else b"X%02x" % _SIGKILL
        self._vcpu = stop.vcpu
        self._stepped = None
        registers = self._debugger.registers(stop.vcpu)
        reply = b"T%02xthread:%x;" % (signal, stop.vcpu + 1)
        for number in EXPEDITED:
            reply += b"%02x:%b;" % (number, to_hex(REGISTERS[number], registers))
        if stop.reason == BREAKPOINT and self._tells_breakpoints:
            reply += b"swbreak:;"
        return reply

    # --- running

    def _why(self, _: bytes) -> bytes:
        return self._last

    def _continue(self, text: bytes) -> Run:
        self._jump(text, self._vcpu)
        return Run(self._debugger.run)

    def _continue_signal(self, text: bytes) -> Run:
        return self._continue(text.partition(b";")[2])

    def _step(self, text: bytes) -> Run:
        vcpu = self._vcpu if self._stepped is None else self._stepped
        self._jump(text, vcpu)
        return Run(partial(self._debugger.step, vcpu))

    def _step_signal(self, text: bytes) -> Run:
        return self._step(text.partition(b";")[2])

    def _jump(self, text: bytes, vcpu: int) -> None:
        if text:
            REGISTERS[_PC].set(self._debugger.registers(vcpu), _number(text))

    def _verbose(self, text: bytes) -> bytes | Run | Leave:
        if text == b"Cont?":
            return b"vCont;c;C;s;S;t"
        if text.startswith(b"Cont;"):
            return self._resume(text[5:])
        if text.startswith(b"Kill;"):
            return Leave(OK, kill=True)
        return UNSUPPORTED

    def _resume(self, text: bytes) -> bytes | Run:
        """`vCont`: for each vCPU the first action that names it; without one it stays where it is, as with `t`."""
        actions: dict[int, str] = {}
        for action in text.split(b";"):
            letter, colon, thread = action.partition(b":")
            kind = letter[:1].decode("ascii", "replace").lower()
            if kind not in ("c", "s", "t") or len(letter) > 3:
                raise _InvalidError
            vcpu = self._thread(thread) if colon else None
            for number in range(len(self._machine.vcpus)) if vcpu is None else (vcpu,):
                actions.setdefault(number, kind)
        stepped = [number for number, kind in actions.items() if kind == "s"]
        if stepped:
            return Run(partial(self._debugger.step, self._vcpu if self._vcpu in stepped else stepped[0]))
        running = sum(kind == "c" for kind in actions.values())
        if running == len(self._machine.vcpus):
            return Run(self._debugger.run)
        return REFUSED if running else self._last

    def _detach(self, _: bytes) -> Leave:
        return Leave(OK, kill=False)

    def _kill(self, _: bytes) -> Leave:
        return Leave(None, kill=True)

    # --- registers

    def _registers(self) -> Registers:
        return self._debugger.registers(self._vcpu)

    def _read_all(self, _: bytes) -> bytes:
        registers = self._registers()
        return b"".join(to_hex(register, registers) for register in REGISTERS)

    def _write_all(self, text: bytes) -> bytes:
        data = _data(text)
        if len(data) != sum(register.bits // 8 for register in REGISTERS):
            raise _InvalidError
        registers = self._registers()
        start = 0
        for register in REGISTERS:
            end = start + register.bits // 8
            register.set(registers, int.from_bytes(data[start:end], "little"))
            start = end
        registers.flush()
        return OK

    def _read_one(self, text: bytes) -> bytes:
        return to_hex(REGISTERS[_register(text)], self._registers())

    def _write_one(self, text: bytes) -> bytes:
        number, _, value = text.partition(b"=")
        register = REGISTERS[_register(number)]
        data = _data(value)
        if len(data) != register.bits // 8:
            raise _InvalidError
        registers = self._registers()
        register.set(registers, int.from_bytes(data, "little"))
        registers.flush()
        return OK

    # --- memory

    def _read_memory(self, text: bytes) -> bytes:
        address, length = _pair(text)
        length = min(length, _CHUNK)
        memory = self._debugger.memory(self._vcpu)
        try:
            data = memory.read(address, length)
        except NotMappedError as error:
            if not 0 < error.address - address < length:
                raise
            data = memory.read(address, error.address - address)
        return data.hex().encode()

    def _write_memory(self, text: bytes) -> bytes:
        head, _, digits = text.partition(b":")
        return self._store(head, _data(digits))

    def _write_binary(self, text: bytes) -> bytes:
        head, _, data = text.partition(b":")
        return self._store(head, data)

    def _store(self, head: bytes, data: bytes) -> bytes:
        address, length = _pair(head)
        if length != len(data):
            raise _InvalidError
        self._debugger.memory(self._vcpu).write(address, data)
        return OK

    # --- breakpoints

    def _insert(self, text: bytes) -> bytes:
        if text[:2] != b"0,":
            return UNSUPPORTED
        address, _ = _pair(text[2:])
        if address not in self._breakpoints:
            if len(self._breakpoints) >= MAX_BREAKPOINTS:
                return FULL
            self._breakpoints[address] = self._debugger.break_at(address, self._vcpu)
        return OK

    def _remove(self, text: bytes) -> bytes:
        if text[:2] != b"0,":
            return UNSUPPORTED
        address, _ = _pair(text[2:])
        breakpoint = self._breakpoints.pop(address, None)
        if breakpoint is not None:
            breakpoint.remove()
        return OK

    # --- threads

    def _thread(self, text: bytes) -> int | None:
        """The vCPU of a thread's id; None for "all" and "any"."""
        if text in (b"-1", b"0"):
            return None
        number = _number(text)
        if not 1 <= number <= len(self._machine.vcpus):
            raise _InvalidError
        return number - 1

    def _select(self, text: bytes) -> bytes:
        vcpu = self._thread(text[1:])
        if text[:1] == b"g":
            self._vcpu = self._vcpu if vcpu is None else vcpu
        elif text[:1] == b"c":
            self._stepped = vcpu
        else:
            raise _InvalidError
        return OK

    def _is_alive(self, text: bytes) -> bytes:
        if self._thread(text) is None:
            raise _InvalidError
        return OK

    # --- queries

    def _query(self, text: bytes) -> bytes:
        name, _, rest = text.partition(b":")
        if name == b"Supported":
            self._tells_breakpoints = b"swbreak+" in rest.split(b";")
            return b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;swbreak+;vContSupported+" % MAX_PACKET
        if name == b"Xfer":
            return _transfer(rest)
        name, _, rest = text.partition(b",")
        if name == b"C":
            return b"QC%x" % (self._vcpu + 1)
        if name == b"fThreadInfo":
            return b"m" + b",".join(b"%x" % (number + 1) for number in range(len(self._machine.vcpus)))
        if name == b"sThreadInfo":
            return b"l"
        if name == b"ThreadExtraInfo":
            return self._extra_info(rest)
        if name == b"Attached":
            return b"1"
        if name == b"Rcmd":
            text = monitor(self._machine, _data(rest).decode("ascii", "replace")).encode()
            return text[:_CHUNK].hex().encode()
        return UNSUPPORTED

    def _extra_info(self, text: bytes) -> bytes:
        vcpu = self._thread(text)
        if vcpu is None:
            raise _InvalidError
        registers = self._debugger.registers(vcpu)
        return f"vCPU {vcpu}, {registers.code_bits}-bit, ring {registers.ring}".encode().hex().encode()

    def _set(self, text: bytes) -> bytes:
        if text != b"StartNoAckMode":
            return UNSUPPORTED
        self.without_acks = True
        return OK


_PC = EXPEDITED[-1]

_COMMANDS: dict[bytes, Callable[[Session, bytes], bytes | Run | Leave]] = {
    b"?": Session._why,
    b"c": Session._continue,
    b"C": Session._continue_signal,
    b"s": Session._step,
    b"S": Session._step_signal,
    b"v": Session._verbose,
    b"D": Session._detach,
    b"k": Session._kill,
    b"g": Session._read_all,
    b"G": Session._write_all,
    b"p": Session._read_one,
    b"P": Session._write_one,
    b"m": Session._read_memory,
    b"M": Session._write_memory,
    b"X": Session._write_binary,
    b"Z": Session._insert,
    b"z": Session._remove,
    b"H": Session._select,
    b"T": Session._is_alive,
    b"q": Session._query,
    b"Q": Session._set,
}


def _transfer(text: bytes) -> bytes:
    """`qXfer`: a piece of the target's description."""
    if not text.startswith(b"features:read:"):
        return UNSUPPORTED
    annex, _, place = text.removeprefix(b"features:read:").partition(b":")
    if annex != b"target.xml":
        return b"E00"  # What the protocol says of an annex that does not exist.
    offset, length = _pair(place)
    document = description()
    piece = document[offset : offset + min(length, _CHUNK)]
    return (b"m" if offset + len(piece) < len(document) else b"l") + piece


def _number(text: bytes) -> int:
    if not text.isalnum() or len(text) > _WORD:
        raise _InvalidError
    try:
        return int(text, 16)
    except ValueError:
        raise _InvalidError from None


def _pair(text: bytes) -> tuple[int, int]:
    first, _, second = text.partition(b",")
    return _number(first), _number(second)


def _data(text: bytes) -> bytes:
    try:
        return unhexlify(text)
    except ValueError:
        raise _InvalidError from None


def _register(text: bytes) -> int:
    number = _number(text)
    if number >= len(REGISTERS):
        raise _InvalidError
    return number
