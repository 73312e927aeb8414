"""kvmpy.machine.script.registers: names, widths, and when KVM is asked."""

from __future__ import annotations

import pytest

from kvmpy.kvm import System
from kvmpy.machine.script.registers import NAMES, Registers


@pytest.fixture
def vcpu():
    with System() as system, system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        yield vcpu


@pytest.fixture
def registers(vcpu):
    return Registers(lambda function: function(vcpu))


pytestmark = pytest.mark.kvm


def test_every_name_can_be_read(registers):
    assert all(isinstance(getattr(registers, name), int) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "value", "rax"),
    [
        ("rax", 0x1122334455667788, 0x1122334455667788),
        ("eax", 0x12345678, 0x12345678),
        ("ax", 0x1234, 0xFFFFFFFFFFFF1234),
        ("al", 0x12, 0xFFFFFFFFFFFFFF12),
        ("ah", 0x12, 0xFFFFFFFFFFFF12FF),
        ("al", 0x112, 0xFFFFFFFFFFFFFF12),
    ],
)
def test_a_write_changes_as_much_as_an_instruction_would(registers, vcpu, name, value, rax):
    registers.rax = (1 << 64) - 1
    setattr(registers, name, value)
    assert registers.rax == rax
    registers.flush()
    assert vcpu.regs().rax == rax


@pytest.mark.parametrize(("name", "value"), [("xmm3", 1 << 127 | 5), ("st2", 1 << 79 | 3), ("mxcsr", 0x1FA0)])
def test_wide_registers_are_numbers(registers, name, value):
    setattr(registers, name, value)
    registers.flush()
    assert getattr(registers, name) == value


def test_segments_and_control_registers(registers, vcpu):
    registers.fs_base = 0x1234000
    registers.cr2 = 0xDEAD
    registers.flush()
    assert vcpu.sregs().fs.base == 0x1234000
    assert vcpu.sregs().cr2 == 0xDEAD


def test_what_is_not_looked_at_is_not_fetched(vcpu):
    asked = []

    def call(function):
        asked.append(function)
        return function(vcpu)

    registers = Registers(call)
    registers.flush()
    assert asked == []
    registers.rax
    registers.rbx
    assert len(asked) == 1
    registers.flush()
    assert len(asked) == 1


def test_a_name_that_does_not_exist(registers):
    with pytest.raises(AttributeError, match="rzx"):
        registers.rzx
    with pytest.raises(AttributeError, match="rzx"):
        registers.rzx = 1


def test_a_reset_processor_is_in_real_mode(registers):
    assert (registers.code_bits, registers.ring, registers.pc) == (16, 0, 0xFFFFFFF0)
