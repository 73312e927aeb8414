"""Each x87 instruction that is finished, from any state, against this processor: the same state comes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.machine.assist.cpu import MF, NM, UD, Cpu, Fault, UnfinishedError
from kvmpy.machine.assist.decode import decode
from kvmpy.machine.assist.x87 import X87
from kvmpy.memory import GuestMemory
from kvmpy.testing.native import IS_X86_64, Native

# Where the state lies in the peer's block, and the operand in memory; the guest has the same from BLOCK on.
STATE, FLAGS, RAX, OPERAND = 0, 0x200, 0x208, 0x400
BLOCK = 0x10000

# fxrstor [rdi]; push qword [rdi + FLAGS]; popfq; mov rax, [rdi + RAX]
BEFORE = bytes.fromhex("0fae0f ffb700020000 9d 488b8708020000")
# mov [rdi + RAX], rax; pushfq; pop qword [rdi + FLAGS]; fxsave [rdi]; fninit; ret
AFTER = bytes.fromhex("48898708020000 9c 8f8700020000 0fae07 dbe3 c3")

ARITHMETIC = 0x8D5
C1 = 0x200


def encode(opcode, digit):
    """An instruction on registers, or on memory at [rdi + OPERAND]."""
    if digit >= 0xC0:
        return bytes([opcode, digit])
    return bytes([opcode, 0x80 | digit << 3 | 7]) + OPERAND.to_bytes(4, "little")


def area(control, status, used, registers):
    """The x87 part of the XSAVE area, which FXSAVE has too."""
    state = bytearray(512)
    state[0:2], state[2:4], state[4] = control.to_bytes(2, "little"), status.to_bytes(2, "little"), used
    for index, bits in enumerate(registers):
        state[32 + 16 * index : 42 + 16 * index] = bits.to_bytes(10, "little")
    state[24:28] = (0x1F80).to_bytes(4, "little")
    return bytes(state)


def guest_cpu(code, state, memory, *, cr0=0x33, flags=2, rax=0):
    """The `Cpu` in 32-bit mode, without paging."""
    regs = SimpleNamespace(rip=0x8000, rflags=flags, rax=rax, rdi=BLOCK)
    segment = SimpleNamespace(base=0, dpl=0, l=0, db=1)
    names = ("cs", "ds", "es", "fs", "gs", "ss")
    sregs = SimpleNamespace(cr0=cr0, cr3=0, cr4=0, efer=0, **dict.fromkeys(names, segment))
    cpu = Cpu(SimpleNamespace(regs=lambda: regs, sregs=lambda: sregs, xsave=lambda: state.ljust(4096, b"\0")), memory)
    cpu.insn = decode(code, 32)
    return cpu


@pytest.fixture(scope="module")
def native():
    if not IS_X86_64:
        pytest.skip("the peer is this processor's x87")
    return Native()


@pytest.fixture(scope="module")
def memory():
    with GuestMemory(0x20000) as made:
        yield made


def compared(state, ignored):
    """What is compared of a state: control, status but for `ignored`, registers in use, and what these hold."""
    control, status = int.from_bytes(state[0:2], "little"), int.from_bytes(state[2:4], "little") & ~ignored
    top = status >> 11 & 7
    held = [state[32 + 16 * n : 42 + 16 * n].hex() for n in range(8) if state[4] >> (top + n & 7) & 1]
    return f"{control:04x}", f"{status:04x}", f"{state[4]:08b}", held


def is_c1_undefined(opcode, digit):
    """Whether processors differ in C1 after it, from each other or from their manuals: `ffree`, `fcomi` and its kin."""
    return (opcode == 0xDD and 0xC0 <= digit < 0xC8) or (opcode in (0xDB, 0xDF) and digit >= 0xE8)


extended = st.builds(
    lambda s, e, m: s << 79 | e << 64 | m,
    st.integers(0, 1),
    st.one_of(st.sampled_from([0, 1, 0x3FFF, 0x7FFE, 0x7FFF]), st.integers(0x3FFF - 70, 0x3FFF + 70)),
    st.one_of(
        st.sampled_from([0, 1 << 63, 3 << 62]),
        st.integers(0, (1 << 64) - 1),
        st.integers(1 << 63, (1 << 64) - 1),
    ),
)
states = st.builds(
    area,
    st.builds(lambda p, r: 0x7F | p << 8 | r << 10, st.sampled_from([0, 2, 3]), st.integers(0, 3)),
    st.builds(lambda top, rest: top << 11 | rest & 0x477F, st.integers(0, 7), st.integers(0, 0xFFFF)),
    st.one_of(st.just(0xFF), st.just(0x7F), st.integers(0, 255)),
    st.lists(extended, min_size=8, max_size=8),
)
keys = sorted((opcode, digit) for _, opcode, digit in X87)


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from(keys), states, st.binary(min_size=10, max_size=10), st.integers(0, 0xFFFF), st.integers(0, 0xFFF)
)
def test_an_instruction_does_what_the_processor_does(native, memory, key, state, operand, rax, flags):
    flags = flags & ARITHMETIC | 0x202
    code = encode(*key)
    block = native.block
    block[STATE : STATE + 512] = state
    block[FLAGS : FLAGS + 8], block[RAX : RAX + 8] = flags.to_bytes(8, "little"), rax.to_bytes(8, "little")
    block[OPERAND : OPERAND + 10] = operand
    native(BEFORE + code + AFTER)
    memory.write(BLOCK + OPERAND, operand)
    cpu = guest_cpu(code, state, memory, flags=flags, rax=rax)
    X87[cpu.insn.key](cpu)
    ignored = C1 if is_c1_undefined(*key) else 0
    assert compared(cpu.xsave_area, ignored) == compared(block[STATE : STATE + 512], ignored)
    assert memory.read(BLOCK + OPERAND, 10) == block[OPERAND : OPERAND + 10]
    assert cpu.regs.rflags & ARITHMETIC == int.from_bytes(block[FLAGS : FLAGS + 8], "little") & ARITHMETIC
    assert cpu.regs.rax == int.from_bytes(block[RAX : RAX + 8], "little")


@pytest.mark.parametrize("cr0", [0x33 | 8, 0x33 | 4], ids=["task switch", "no x87"])
def test_without_an_x87_at_hand_it_is_nm(memory, cr0):
    cpu = guest_cpu(encode(0xD9, 0xE8), area(0x37F, 0, 0, [0] * 8), memory, cr0=cr0)
    with pytest.raises(Fault) as caught:
        X87[cpu.insn.key](cpu)
    assert caught.value.vector == NM


def test_an_exception_that_waits_is_reported_by_the_next_instruction(memory):
    cpu = guest_cpu(encode(0xD9, 0xE8), area(0x37E, 0x81, 0, [0] * 8), memory)
    with pytest.raises(Fault) as caught:
        X87[cpu.insn.key](cpu)
    assert caught.value.vector == MF


def test_control_instructions_do_not_wait(memory):
    cpu = guest_cpu(encode(0xDB, 0xE2), area(0x37E, 0x81, 0, [0] * 8), memory)
    X87[cpu.insn.key](cpu)
    assert cpu.fsw == 0


def test_a_lock_prefix_is_ud(memory):
    cpu = guest_cpu(b"\xf0" + encode(0xD9, 0xE8), area(0x37F, 0, 0, [0] * 8), memory)
    with pytest.raises(Fault) as caught:
        X87[cpu.insn.key](cpu)
    assert caught.value.vector == UD


def test_an_exception_that_is_not_masked_is_left_unfinished_and_changes_nothing(memory):
    state = area(0x37B, 0, 0x80, [1 << 63 | 0x3FFF << 64] + [0] * 7)
    state = state[:2] + (7 << 11).to_bytes(2, "little") + state[4:]
    memory.write(BLOCK + OPERAND, bytes(4))
    cpu = guest_cpu(encode(0xD8, 6), state, memory)  # 1 / 0
    with pytest.raises(UnfinishedError):
        X87[cpu.insn.key](cpu)
    assert bytes(cpu.xsave_area[:512]) == state
