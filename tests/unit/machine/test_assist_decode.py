"""The decoder against a complete one, over everything that it claims to know."""

from __future__ import annotations

import iced_x86
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.machine.assist.cpu import NUMBERED
from kvmpy.machine.assist.decode import Instruction, TruncatedError, decode
from kvmpy.machine.assist.instructions import INSTRUCTIONS

PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)
REGISTER_NAMES = {value: name.lower() for name, value in vars(iced_x86.Register).items() if isinstance(value, int)}
FULL_NAME = {f"e{name[1:]}": name for name in NUMBERED[:8]} | {f"r{n}d": f"r{n}" for n in range(8, 16)}


def opcodes():
    return sorted({key[1] for key in INSTRUCTIONS})


@st.composite
def instructions(draw, bits):
    code = bytes(draw(st.lists(st.sampled_from(PREFIXES), max_size=4)))
    if bits == 64 and draw(st.booleans()):
        code += bytes([0x40 | draw(st.integers(0, 15))])
    opcode = draw(st.sampled_from(opcodes()))
    code += opcode.to_bytes(2 if opcode > 0xFF else 1, "big")
    return (code + draw(st.binary(min_size=6, max_size=6)))[:15].ljust(15, b"\0")


def register(number, insn):
    if number is None:
        return "none"
    name = NUMBERED[number]
    return name if insn.address_size == 64 else {full: short for short, full in FULL_NAME.items()}[name]


def check_memory(insn, theirs, address, bits):
    """The memory operand is the one that the other decoder reads."""
    assert insn.is_memory
    segment = REGISTER_NAMES[theirs.memory_segment]
    # The other decoder shows overrides that 64-bit mode ignores.
    if bits != 64 or segment in ("fs", "gs"):
        assert insn.segment == segment
    else:
        assert insn.segment in ("ds", "ss")
    base = REGISTER_NAMES[theirs.memory_base]
    mask = (1 << insn.address_size) - 1
    if insn.rip_relative:
        assert base in ("rip", "eip")
        assert (address + insn.length + insn.displacement) & mask == theirs.memory_displacement & mask
        return
    assert register(insn.base, insn) == base
    assert register(insn.index, insn) == REGISTER_NAMES[theirs.memory_index]
    if insn.index is not None:
        assert 1 << insn.scale == theirs.memory_index_scale
    assert insn.displacement & mask == theirs.memory_displacement & mask


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_length_and_operand_are_those_of_a_complete_decoder(bits):
    address = 0x1000

    @given(instructions(bits))
    def check(code):
        insn = decode(code, bits)
        if insn is None or insn.key not in INSTRUCTIONS:
            return
        theirs = iced_x86.Decoder(bits, code, iced_x86.DecoderOptions.NO_INVALID_CHECK, ip=address).decode()
        if theirs.is_invalid:
            return
        assert insn.length == theirs.len
        kinds = [theirs.op_kind(index) for index in range(theirs.op_count)]
        if iced_x86.OpKind.MEMORY in kinds:
            check_memory(insn, theirs, address, bits)
        else:
            assert not insn.is_memory

    check()


@given(st.binary(max_size=20), st.sampled_from([16, 32, 64]))
def test_any_bytes_give_an_instruction_or_none(code, bits):
    try:
        insn = decode(code, bits)
    except TruncatedError:
        assert len(code) < 15 or set(code[:14]) <= set(code)
    else:
        assert insn is None or 0 < insn.length <= 15


@pytest.mark.parametrize(
    "code",
    ["", "f3", "0f", "0fae", "0fae14", "0fae1425000000", "480fc788", "0fae5c24"],
    ids=lambda code: code or "none",
)
def test_a_cut_instruction_is_truncated(code):
    with pytest.raises(TruncatedError):
        decode(bytes.fromhex(code), 64)


def test_fifteen_prefixes_leave_no_room():
    with pytest.raises(TruncatedError):
        decode(b"\x66" * 15 + b"\xcc", 64)


def test_a_rex_prefix_counts_only_before_the_opcode():
    insn = decode(bytes.fromhex("48f30fb8c1"), 64)
    assert isinstance(insn, Instruction)
    assert insn.operand_size == 32
    assert decode(bytes.fromhex("f3480fb8c1"), 64).operand_size == 64


def test_another_instruction_is_not_known():
    assert decode(b"\x0f\x38\x1c\x03", 64) is None
    assert decode(b"\x90", 64) is None


def test_sixteen_bit_addresses_are_not_known():
    assert decode(bytes.fromhex("670fae1f"), 32) is None
    assert decode(bytes.fromhex("0fae1f"), 16) is None


@pytest.mark.parametrize(("code", "size"), [("f30fb8c1", 32), ("66f30fb8c1", 16), ("66f3480fb8c1", 64)])
def test_operand_size_in_64_bit_code(code, size):
    assert decode(bytes.fromhex(code), 64).operand_size == size


def test_operand_size_in_16_bit_code():
    assert decode(bytes.fromhex("f30fb8c1"), 16).operand_size == 16
    assert decode(bytes.fromhex("66f30fb8c1"), 16).operand_size == 32
