"""The i8042 keyboard controller with a keyboard that nobody types on, and no mouse (IBM PS/2 reference manual).

It is here for two things: a driver that probes it gets its answers at once, and the reset command resets.
"""

from __future__ import annotations

from kvmpy.devices.registers import RegisterFile, Window, ignore_write, read_ones
from kvmpy.devices.state import BYTE, FLAG, State, integers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import ClassVar

    from kvmpy.devices.state import Fields
    from kvmpy.irq import InterruptLine

STR_OBF = 0x01  # a byte waits at the data port
STR_IBF = 0x02  # the last write is not taken yet: never seen here
STR_SYS = 0x04  # the self test has passed
STR_CMD = 0x08  # the last write was a command
STR_KEYLOCK = 0x10  # the keyboard is not locked
STR_AUXDATA = 0x20  # the waiting byte is from the mouse port
STR_TIMEOUT = 0x40

CTR_KBDINT = 0x01
CTR_AUXINT = 0x02
CTR_SYS = 0x04
CTR_KBDDIS = 0x10
CTR_AUXDIS = 0x20
CTR_XLATE = 0x40  # scan codes of set 2 are turned into set 1

CMD_READ_CTR = 0x20
CMD_WRITE_CTR = 0x60
CMD_AUX_DISABLE = 0xA7
CMD_AUX_ENABLE = 0xA8
CMD_AUX_TEST = 0xA9
CMD_SELF_TEST = 0xAA
CMD_KBD_TEST = 0xAB
CMD_KBD_DISABLE = 0xAD
CMD_KBD_ENABLE = 0xAE
CMD_READ_INPUT = 0xC0
CMD_READ_OUTPUT = 0xD0
CMD_WRITE_OUTPUT = 0xD1
CMD_KBD_LOOP = 0xD2
CMD_AUX_LOOP = 0xD3
CMD_AUX_WRITE = 0xD4
CMD_PULSE = 0xF0  # to 0xff: pulls down the output port's bits that are 0 in the lower half

SELF_TEST_PASSED = 0x55
TEST_PASSED = 0x00
TEST_CLOCK_LOW = 0x01

OUTPUT_NO_RESET = 0x01  # pulled down, this bit resets the processor
OUTPUT_A20 = 0x02
OUTPUT_KBD_OBF = 0x10

KBD_SET_LEDS = 0xED
KBD_ECHO = 0xEE
KBD_SCANCODE_SET = 0xF0
KBD_IDENTIFY = 0xF2
KBD_SET_RATE = 0xF3
KBD_RESEND = 0xFE
KBD_RESET = 0xFF

KBD_ACK = 0xFA
KBD_SELF_TEST_PASSED = 0xAA
KBD_ID = (0xAB, 0x83)
KBD_ID_TRANSLATED = (0xAB, 0x41)

_WITH_PARAMETER = (CMD_WRITE_CTR, CMD_WRITE_OUTPUT, CMD_KBD_LOOP, CMD_AUX_LOOP, CMD_AUX_WRITE)

# A driver that asks and never reads fills a queue this far.
_QUEUE_SIZE = 16

_AUX = STR_AUXDATA << 8
_TIMEOUT = STR_TIMEOUT << 8


class I8042State(State):
    """Command byte, output port, commands that wait for their parameter (0: none), and bytes not yet read.

    An entry of `answers` (the controller's) has status bits above the byte; `keys` are the keyboard's.
    """

    __slots__ = ("answers", "commanded", "ctr", "keyboard_command", "keys", "last", "output", "pending")

    FIELDS: ClassVar[Fields] = {
        "ctr": BYTE, "output": BYTE, "pending": BYTE, "keyboard_command": BYTE, "last": BYTE, "commanded": FLAG,
        "answers": integers(0, _QUEUE_SIZE, 0xFFFF), "keys": integers(0, _QUEUE_SIZE, 0xFF),
    }  # fmt: skip

    def __init__(
        self,
        *,
        ctr: int = CTR_KBDINT | CTR_SYS | CTR_AUXDIS | CTR_XLATE,
        output: int = OUTPUT_NO_RESET | OUTPUT_A20,
        pending: int = 0,
        keyboard_command: int = 0,
        last: int = 0,
        commanded: int = 0,
        answers: Iterable[int] = (),
        keys: Iterable[int] = (),
    ) -> None:
        self.ctr = ctr
        self.output = output
        self.pending = pending
        self.keyboard_command = keyboard_command
        self.last = last
        self.commanded = commanded
        self.answers = list(answers)
        self.keys = list(keys)


class I8042(RegisterFile):
    """The controller; `data_port` belongs at port 0x60 and `command_port` at 0x64, one byte each.

    `reset` is called when the guest pulls the processor's reset pin; `irq`, when given, is the keyboard's line.
    """

    __slots__ = ("_irq", "_level", "_reset", "_state", "command_port", "data_port")

    def __init__(self, reset: Callable[[], object], *, irq: InterruptLine | None = None) -> None:
        super().__init__()
        self._reset = reset
        self._irq = irq
        self._level = False
        self._state = I8042State()
        self.data_port = Window(self, 0)
        self.command_port = Window(self, 4)

    @property
    def a20(self) -> bool:
        """Whether the guest has address line 20 on, as far as this controller goes."""
        return bool(self._state.output & OUTPUT_A20)

    def save(self) -> I8042State:
        """Everything, as a copy."""
        with self._lock:
            return I8042State(**self._state.to_dict())

    def restore(self, state: I8042State) -> None:
        """Takes over `state` and sets the interrupt line anew; `I8042State()` is a reset."""
        with self._lock:
            self._state = I8042State(**state.to_dict())
            self._level = False
            self._update()

    # The two ports.

    def _read_data(self) -> int:
        state = self._state
        queue = self._queue()
        if queue:
            state.last = queue.pop(0) & 0xFF
            # Each byte interrupts for itself, so the line drops in between.
            self._set_line(False)
            self._update()
        return state.last

    def _read_status(self) -> int:
        state = self._state
        queue = self._queue()
        value = STR_KEYLOCK | state.ctr & CTR_SYS | (STR_CMD if state.commanded else 0)
        return value | STR_OBF | queue[0] >> 8 if queue else value

    def _write_data(self, value: int) -> None:
        state = self._state
        state.commanded = 0
        if state.pending:
            command, state.pending = state.pending, 0
            self._finish(command, value)
        else:
            self._tell_keyboard(value)
        self._update()

    def _write_command(self, command: int) -> None:
        state = self._state
        state.commanded = 1
        state.pending = command if command in _WITH_PARAMETER else 0
        if command == CMD_READ_CTR:
            self._answer(state.ctr)
        elif command == CMD_AUX_DISABLE:
            state.ctr |= CTR_AUXDIS
        elif command == CMD_AUX_ENABLE:
            state.ctr &= ~CTR_AUXDIS
        elif command == CMD_AUX_TEST:
            # What a controller without a mouse port says; silence would cost the driver half a second.
            self._answer(TEST_CLOCK_LOW)
        elif command == CMD_SELF_TEST:
            state.ctr |= CTR_SYS
            self._answer(SELF_TEST_PASSED)
        elif command == CMD_KBD_TEST:
            self._answer(TEST_PASSED)
        elif command == CMD_KBD_DISABLE:
            state.ctr |= CTR_KBDDIS
        elif command == CMD_KBD_ENABLE:
            state.ctr &= ~CTR_KBDDIS
        elif command == CMD_READ_INPUT:
            self._answer(0x80)
        elif command == CMD_READ_OUTPUT:
            self._answer(state.output | (OUTPUT_KBD_OBF if self._queue() else 0))
        elif command >= CMD_PULSE and not command & OUTPUT_NO_RESET:
            self._later.append((self._reset, ()))
        self._update()

    # At the distance of ports 0x60 and 0x64, so that a wide access to one does not reach the other.
    READERS = (_read_data, read_ones, read_ones, read_ones, _read_status)
    WRITERS = (_write_data, ignore_write, ignore_write, ignore_write, _write_command)

    # Inside, with the lock held.

    def _finish(self, command: int, value: int) -> None:
        """A command whose parameter has come."""
        state = self._state
        if command == CMD_WRITE_CTR:
            state.ctr = value
        elif command == CMD_WRITE_OUTPUT:
            state.output = value & OUTPUT_A20 | OUTPUT_NO_RESET
            if not value & OUTPUT_NO_RESET:
                self._later.append((self._reset, ()))
        elif command in (CMD_KBD_LOOP, CMD_AUX_LOOP):
            # Without a mouse port, the looped byte does not come back as the mouse's.
            self._answer(value)
        elif command == CMD_AUX_WRITE:
            self._answer(KBD_RESEND | _AUX | _TIMEOUT)

    def _tell_keyboard(self, value: int) -> None:
        """A byte for the keyboard, and what it says to that."""
        state = self._state
        command, state.keyboard_command = state.keyboard_command, 0
        replies: tuple[int, ...] = (KBD_ACK,)
        if command:
            if command == KBD_SCANCODE_SET and value == 0:
                replies = (KBD_ACK, 2)
        elif value in (KBD_SET_LEDS, KBD_SCANCODE_SET, KBD_SET_RATE):
            state.keyboard_command = value
        elif value == KBD_ECHO:
            replies = (KBD_ECHO,)
        elif value == KBD_IDENTIFY:
            replies = (KBD_ACK, *(KBD_ID_TRANSLATED if state.ctr & CTR_XLATE else KBD_ID))
        elif value == KBD_RESET:
            replies = (KBD_ACK, KBD_SELF_TEST_PASSED)
        elif value < KBD_SET_LEDS or value == KBD_RESEND:
            replies = (KBD_RESEND,)
        if len(state.keys) + len(replies) <= _QUEUE_SIZE:
            state.keys.extend(replies)

    def _answer(self, entry: int) -> None:
        if len(self._state.answers) < _QUEUE_SIZE:
            self._state.answers.append(entry)

    def _queue(self) -> list[int]:
        """The queue whose first byte the data port shows now: empty when it shows none."""
        state = self._state
        if not state.answers and not state.ctr & CTR_KBDDIS:
            return state.keys
        return state.answers

    def _update(self) -> None:
        queue = self._queue()
        self._set_line(bool(queue and self._state.ctr & CTR_KBDINT and not queue[0] & _AUX))

    def _set_line(self, level: bool) -> None:
        if level != self._level:
            self._level = level
            if self._irq is not None:
                self._irq.set(level)
