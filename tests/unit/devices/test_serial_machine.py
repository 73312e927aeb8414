"""The 16550A under random use: the interrupt line always tells the truth, and no byte is lost or swapped."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvmpy.devices.legacy import serial_registers as s
from kvmpy.devices.legacy.serial import Serial
from kvmpy.testing.fakes import FakeLine, Ports

BYTES = st.integers(0, 0xFF)


class AnyUse(RuleBasedStateMachine):
    """Everything that a guest and a host can do, in any order."""

    @initialize()
    def start(self) -> None:
        self.line = FakeLine()
        self.uart = Serial(self.line, lambda data: None)
        self.ports = Ports(self.uart)

    @rule(offset=st.integers(0, 9), width=st.sampled_from([1, 1, 1, 2, 4]))
    def read(self, offset: int, width: int) -> None:
        self.ports.read(offset, width)

    @rule(offset=st.integers(0, 9), data=st.one_of(BYTES.map(lambda value: bytes([value])), st.binary(max_size=4)))
    def write(self, offset: int, data: bytes) -> None:
        self.ports.write(offset, data)

    @rule(data=st.binary(max_size=20))
    def receive(self, data: bytes) -> None:
        assert 0 <= self.uart.receive(data) <= min(len(data), s.FIFO_SIZE)

    @rule()
    def receive_break(self) -> None:
        self.uart.receive_break()

    @rule(lines=BYTES)
    def modem(self, lines: int) -> None:
        self.uart.set_modem(lines)

    @rule()
    def restore(self) -> None:
        state = self.uart.save()
        self.uart.restore(type(state).from_dict(state.to_dict()))

    @invariant()
    def the_line_is_pending_and_out2(self) -> None:
        # Asked of a copy, because reading IIR changes it.
        line = FakeLine()
        copy = Serial(line, lambda data: None)
        copy.restore(self.uart.save())
        mcr = Ports(copy).inb(s.MCR)
        pending = not Ports(copy).inb(s.IIR) & s.IIR_NO_INT
        assert self.line.level == (pending and mcr & (s.MCR_OUT2 | s.MCR_LOOP) == s.MCR_OUT2)


class Stream(RuleBasedStateMachine):
    """A driver that only sends, receives and changes interrupts: a pipe in both directions."""

    @initialize(fifo=st.sampled_from([0, 1, 0x41, 0x81, 0xC1]))
    def start(self, fifo: int) -> None:
        self.sent = bytearray()
        self.uart = Serial(FakeLine(), self.sent.extend)
        self.ports = Ports(self.uart)
        self.ports.outb(s.FCR, fifo)
        self.wrote = bytearray()
        self.typed = bytearray()
        self.taken = 0
        self.read = bytearray()

    @rule(value=BYTES)
    def send(self, value: int) -> None:
        self.ports.outb(s.THR, value)
        self.wrote.append(value)

    @rule(data=st.binary(max_size=20))
    def type(self, data: bytes) -> None:
        self.typed += data
        self.taken += self.uart.receive(self.typed[self.taken :])

    @rule(count=st.integers(1, 20))
    def drain(self, count: int) -> None:
        while count and self.ports.inb(s.LSR) & s.LSR_DR:
            self.read.append(self.ports.inb(s.RBR))
            count -= 1

    @rule(value=BYTES)
    def interrupts(self, value: int) -> None:
        self.ports.outb(s.IER, value)

    @invariant()
    def bytes_arrive_in_order(self) -> None:
        waiting = self.uart.save().fifo
        assert self.sent == self.wrote
        assert self.read + bytes(waiting) == self.typed[: self.taken]


AnyUse.TestCase.settings = Stream.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyUse = AnyUse.TestCase
TestStream = Stream.TestCase
