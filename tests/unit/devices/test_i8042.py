"""The keyboard controller: what a driver that probes it asks, and what it must hear."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.legacy import i8042 as k
from kvmpy.testing.fakes import FakeLine, Ports


class Controller:
    """The controller behind its two ports."""

    def __init__(self) -> None:
        self.line = FakeLine()
        self.resets = 0
        self.device = k.I8042(self._reset, irq=self.line)
        self.data = Ports(self.device.data_port)
        self.control = Ports(self.device.command_port)

    def _reset(self) -> None:
        assert not self.device._lock.locked()
        self.resets += 1

    def status(self) -> int:
        return self.control.inb(0)

    def command(self, command: int, *parameters: int) -> None:
        self.control.outb(0, command)
        for parameter in parameters:
            self.data.outb(0, parameter)

    def ask(self, command: int, *parameters: int) -> int:
        self.command(command, *parameters)
        assert self.status() & k.STR_OBF
        return self.data.inb(0)

    def keyboard(self, *values: int) -> list[int]:
        for value in values:
            self.data.outb(0, value)
        heard = []
        while self.status() & k.STR_OBF:
            heard.append(self.data.inb(0))
        return heard


@pytest.fixture
def controller() -> Controller:
    return Controller()


def test_at_first_nothing_waits_and_the_keyboard_is_not_locked(controller):
    assert controller.status() == k.STR_KEYLOCK | k.STR_SYS


def test_a_wide_access_to_one_port_does_not_reach_the_other(controller):
    controller.data.write(0, b"\xee\xfe\xfe\xfe")
    assert controller.resets == 0
    assert controller.data.read(0, 4) == b"\xee\xff\xff\xff"
    assert controller.control.read(0, 2)[1] == 0xFF


def test_status_tells_command_from_data(controller):
    controller.command(k.CMD_KBD_ENABLE)
    assert controller.status() & k.STR_CMD
    controller.keyboard(0xF4)
    assert not controller.status() & k.STR_CMD


@pytest.mark.parametrize(
    ("command", "answer"), [(k.CMD_SELF_TEST, 0x55), (k.CMD_KBD_TEST, 0), (k.CMD_AUX_TEST, k.TEST_CLOCK_LOW)]
)
def test_self_tests_answer(controller, command, answer):
    assert controller.ask(command) == answer
    assert not controller.status() & k.STR_OBF


def test_the_command_byte_is_read_and_written(controller):
    controller.command(k.CMD_WRITE_CTR, 0x34)
    assert controller.ask(k.CMD_READ_CTR) == 0x34


@pytest.mark.parametrize(
    ("off", "on", "bit"),
    [(k.CMD_AUX_DISABLE, k.CMD_AUX_ENABLE, k.CTR_AUXDIS), (k.CMD_KBD_DISABLE, k.CMD_KBD_ENABLE, k.CTR_KBDDIS)],
)
def test_ports_are_switched_in_the_command_byte(controller, off, on, bit):
    controller.command(off)
    assert controller.ask(k.CMD_READ_CTR) & bit
    controller.command(on)
    assert not controller.ask(k.CMD_READ_CTR) & bit


def test_the_mouse_loop_answers_but_not_as_the_mouse(controller):
    controller.command(k.CMD_AUX_LOOP, 0x5A)
    assert controller.status() & (k.STR_OBF | k.STR_AUXDATA) == k.STR_OBF
    assert controller.data.inb(0) == 0x5A


def test_a_byte_for_the_mouse_times_out(controller):
    controller.command(k.CMD_AUX_WRITE, 0xF2)
    wanted = k.STR_OBF | k.STR_AUXDATA | k.STR_TIMEOUT
    assert controller.status() & wanted == wanted
    assert not controller.line.level


def test_the_output_port_holds_a20(controller):
    assert controller.ask(k.CMD_READ_OUTPUT) == 3
    controller.command(k.CMD_WRITE_OUTPUT, 0x01)
    assert controller.ask(k.CMD_READ_OUTPUT) == 1
    assert not controller.device.a20
    assert controller.resets == 0


def test_writing_the_output_port_without_bit_0_resets(controller):
    controller.command(k.CMD_WRITE_OUTPUT, 0x02)
    assert controller.resets == 1
    assert controller.ask(k.CMD_READ_OUTPUT) == 3


@pytest.mark.parametrize(("command", "resets"), [(0xFE, 1), (0xF0, 1), (0xFF, 0), (0xFD, 0)])
def test_a_pulse_of_bit_0_resets(controller, command, resets):
    controller.command(command)
    assert controller.resets == resets


@pytest.mark.parametrize(
    ("asked", "heard"),
    [
        ([0xFF], [0xFA, 0xAA]),
        ([0xF2], [0xFA, 0xAB, 0x41]),
        ([0xF4], [0xFA]),
        ([0xF5], [0xFA]),
        ([0xED, 0x07], [0xFA, 0xFA]),
        ([0xF3, 0x00], [0xFA, 0xFA]),
        ([0xF0, 0x02], [0xFA, 0xFA]),
        ([0xF0, 0x00], [0xFA, 0xFA, 0x02]),
        ([0xEE], [0xEE]),
        ([0x12], [0xFE]),
    ],
)
def test_the_keyboard_answers(controller, asked, heard):
    assert controller.keyboard(*asked) == heard


def test_the_keyboards_name_is_its_own_without_translation(controller):
    controller.command(k.CMD_WRITE_CTR, 0)
    assert controller.keyboard(0xF2) == [0xFA, 0xAB, 0x83]


def test_a_disabled_keyboard_waits(controller):
    controller.command(k.CMD_KBD_DISABLE)
    assert controller.keyboard(0xF4) == []
    controller.command(k.CMD_KBD_ENABLE)
    assert controller.status() & k.STR_OBF
    assert controller.data.inb(0) == 0xFA


def test_reading_again_gives_the_last_byte(controller):
    controller.keyboard(0xEE)
    assert controller.data.inb(0) == 0xEE


def test_each_byte_interrupts_for_itself(controller):
    controller.data.outb(0, 0xF2)
    edges = []
    while controller.line.level:
        edges.append(controller.line.edges)
        controller.data.inb(0)
    assert edges == [1, 2, 3]


def test_no_interrupt_unless_enabled(controller):
    controller.command(k.CMD_WRITE_CTR, 0)
    controller.keyboard(0xF2)
    assert controller.line.edges == 0


def test_a_driver_that_never_reads_fills_bounded_queues(controller):
    for _ in range(100):
        controller.command(k.CMD_READ_CTR)
        controller.data.outb(0, 0xFF)
    state = controller.device.save()
    assert (len(state.answers), len(state.keys)) == (16, 16)


def test_a_restored_controller_goes_on(controller):
    controller.command(k.CMD_WRITE_CTR, k.CTR_KBDINT)
    controller.data.outb(0, 0xED)
    other = Controller()
    other.device.restore(k.I8042State.from_dict(json.loads(json.dumps(controller.device.save().to_dict()))))
    assert other.line.level
    assert other.keyboard(0x00) == [0xFA, 0xFA]
    assert controller.device.save().keys == [0xFA]


@given(st.lists(st.tuples(st.sampled_from("rwsc"), st.integers(0, 255)), max_size=60))
def test_any_use_keeps_the_line_true(steps):
    controller = Controller()
    for step, value in steps:
        if step == "r":
            controller.data.inb(0)
        elif step == "w":
            controller.data.outb(0, value)
        elif step == "c":
            controller.command(value)
        status = controller.status()
        waiting = status & k.STR_OBF and not status & k.STR_AUXDATA
        assert controller.line.level == bool(waiting and controller.device.save().ctr & k.CTR_KBDINT)
        k.I8042State.from_dict(controller.device.save().to_dict())
