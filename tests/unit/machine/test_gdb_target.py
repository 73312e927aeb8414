"""kvmpy.machine.gdb.target: the processor as gdb knows it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from kvmpy.machine.gdb.target import EXPEDITED, NUMBERS, REGISTERS, description, to_hex


class Plain:
    """Registers of a vCPU in real mode, with what a test sets."""

    def __init__(self, **values):
        self.code_bits = 16
        self.__dict__.update(values)


def registers_of(feature):
    root = ElementTree.fromstring(description())
    return [one.get("name") for one in root.iterfind(f"feature[@name='{feature}']/reg")]


def test_the_description_has_the_registers_in_their_order():
    root = ElementTree.fromstring(description())
    found = [(one.get("name"), int(one.get("bitsize"))) for one in root.iter("reg")]
    assert found == [(register.name, register.bits) for register in REGISTERS]


def test_gdb_finds_the_features_it_wants():
    core = registers_of("org.gnu.gdb.i386.core")
    assert " ".join(core[:17]) == "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip"
    assert " ".join(core[17:24]) == "eflags cs ss ds es fs gs"
    assert core[24:32] == [f"st{number}" for number in range(8)]
    assert " ".join(core[32:]) == "fctrl fstat ftag fiseg fioff foseg fooff fop"
    assert registers_of("org.gnu.gdb.i386.sse") == [*(f"xmm{number}" for number in range(16)), "mxcsr"]
    assert registers_of("org.gnu.gdb.i386.segments") == ["fs_base", "gs_base"]


def test_types_that_gdb_does_not_have_are_defined():
    root = ElementTree.fromstring(description())
    assert {one.get("id") for one in root.iter("flags")} == {"i386_eflags"}
    defined = {one.get("id") for one in root.iter() if one.get("id")}
    known = {"int", "int8", "int16", "int32", "int64", "uint128", "data_ptr", "code_ptr", "i387_ext"}
    known |= {"ieee_single", "ieee_double"}
    used = {one.get("type") for one in root.iter() if one.get("type")}
    assert used <= known | defined


def test_stops_tell_frame_stack_and_place():
    assert [REGISTERS[number].name for number in EXPEDITED] == ["rbp", "rsp", "rip"]


def test_values_travel_with_their_lowest_byte_first():
    assert to_hex(REGISTERS[NUMBERS["rax"]], Plain(rax=0x1122334455667788)) == b"8877665544332211"


def test_rip_is_linear():
    register = REGISTERS[NUMBERS["rip"]]
    state = Plain(cs_base=0x10000, rip=0x20, pc=0x10020)
    assert register.get(state) == 0x10020
    register.set(state, 0x10040)
    assert state.rip == 0x40


@pytest.mark.parametrize(("short", "full"), [(0x00, 0xFFFF), (0xFF, 0), (0x81, 0x3FFC)])
def test_tags_of_the_x87(short, full):
    register = REGISTERS[NUMBERS["ftag"]]
    state = Plain(ftw=short)
    assert register.get(state) == full
    other = Plain(ftw=short ^ 0xFF)
    register.set(other, full)
    assert other.ftw == short


def test_the_last_x87_instruction_is_in_two_halves():
    state = Plain(fip=0x1234_5678_9ABC)
    assert REGISTERS[NUMBERS["fioff"]].get(state) == 0x5678_9ABC
    REGISTERS[NUMBERS["fiseg"]].set(state, 0x4321)
    assert state.fip == 0x4321_5678_9ABC


def test_a_value_that_is_there_already_is_not_set():
    class Sealed:
        rax = 5

        def __setattr__(self, name, value):
            raise AssertionError(name)

    REGISTERS[NUMBERS["rax"]].set(Sealed(), 5)
