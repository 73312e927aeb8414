"""Each operation against the processor's own x87: the same bits, the same exceptions, the same way of rounding."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvmpy.machine.assist import float80
from kvmpy.machine.assist.float80 import DOUBLE, SINGLE, Work, from_extended, from_integer, from_memory
from kvmpy.testing.native import IS_X86_64, Native

pytestmark = pytest.mark.skipif(not IS_X86_64, reason="the peer is this processor's x87")

EXCEPTIONS = 0x3F
C1 = 1 << 9
C3_C2_C0 = 1 << 14 | 1 << 10 | 1 << 8

# Where the peer's operands and results lie in its block.
CONTROL, STATUS, A, B, MEMORY, RESULT = 0, 8, 16, 32, 48, 64

# fninit; fld tbyte [rdi + B]; fld tbyte [rdi + A]; fldcw [rdi]; fnclex
BEFORE = bytes.fromhex("dbe3 db6f20 db6f10 d92f dbe2")
# fnstsw [rdi + STATUS]; fstp tbyte [rdi + RESULT]; fninit; ret
AFTER = bytes.fromhex("dd7f08 db7f40 dbe3 c3")


@pytest.fixture(scope="module")
def processor():
    """Runs one x87 instruction on this processor: ST(0) is `a`, ST(1) is `b`, and `memory` is at [rdi + MEMORY]."""
    native = Native()
    block = native.block

    def run(code, control, a=0, b=0, memory=b""):
        """(ST(0), the status word, the 8 bytes of memory) afterwards."""
        block[:96] = bytes(96)
        block[CONTROL : CONTROL + 2] = control.to_bytes(2, "little")
        block[MEMORY : MEMORY + len(memory)] = memory
        for at, value in ((A, a), (B, b)):
            block[at : at + 10] = value.to_bytes(10, "little")
        native(BEFORE + bytes.fromhex(code) + AFTER)
        status = int.from_bytes(block[STATUS : STATUS + 2], "little")
        return int.from_bytes(block[RESULT : RESULT + 10], "little"), status, block[MEMORY : MEMORY + 8]

    return run


# All exceptions masked, any precision but the reserved one, any rounding.
controls = st.builds(lambda p, r: 0x3F | p << 8 | r << 10, st.sampled_from([0, 2, 3]), st.integers(0, 3))
exponents = st.one_of(
    st.sampled_from([0, 1, 2, 0x3FFF, 0x7FFE, 0x7FFF]),
    st.integers(0x3FFF - 70, 0x3FFF + 70),
    st.integers(0x3FFF - 1100, 0x3FFF + 1100),
    st.integers(0, 0x7FFF),
)
mantissas = st.one_of(
    st.sampled_from([0, 1, 1 << 62, 1 << 63, 3 << 62, (1 << 64) - 1, (1 << 63) - 1, (1 << 63) | 1]),
    st.integers(0, (1 << 64) - 1),
    st.integers(1 << 63, (1 << 64) - 1),
    # Few bits, so that results are exact or lie between two.
    st.builds(lambda top, low, at: (1 << 63 | top << 50 | low << at) & (1 << 64) - 1, st.integers(0, 8191),
              st.integers(0, 3), st.integers(0, 62)),
)  # fmt: skip
extended = st.builds(lambda s, e, m: s << 79 | e << 64 | m, st.integers(0, 1), exponents, mantissas)


def check(work, theirs, status):
    assert work.flags == status & EXCEPTIONS
    if work.flags & float80.PE:
        assert work.up == bool(status & C1)


@pytest.mark.parametrize(
    ("name", "code"), [("add", "d8c1"), ("multiply", "d8c9"), ("subtract", "d8e1"), ("divide", "d8f1")]
)
def test_arithmetic(processor, name, code):
    @given(controls, extended, extended)
    def same(control, a, b):
        work = Work(control)
        ours = getattr(float80, name)(work, from_extended(a), from_extended(b))
        theirs, status, _ = processor(code, control, a, b)
        assert f"{ours:020x}" == f"{theirs:020x}"
        check(work, theirs, status)

    same()


@given(controls, extended, st.integers(0, 70), st.integers(-3, 3))
def test_a_difference_of_neighbours(processor, control, a, distance, more):
    b = (a ^ 1 << 79) + more & (1 << 80) - 1
    b = b & ~(0x7FFF << 64) | max((a >> 64 & 0x7FFF) - distance, 0) << 64
    work = Work(control)
    ours = float80.add(work, from_extended(a), from_extended(b))
    theirs, status, _ = processor("d8c1", control, a, b)
    assert f"{ours:020x}" == f"{theirs:020x}"
    check(work, theirs, status)


@pytest.mark.parametrize(("quiet", "code"), [(False, "d8d1"), (True, "dde1")])
def test_comparison(processor, quiet, code):
    @given(controls, extended, extended)
    def same(control, a, b):
        work = Work(control)
        ours = float80.compare(work, from_extended(a), from_extended(b), quiet=quiet)
        _, status, _ = processor(code, control, a, b)
        conditions = {None: 0x4500, -1: 0x100, 0: 0x4000, 1: 0}[ours]
        assert conditions == status & C3_C2_C0
        assert work.flags == status & EXCEPTIONS

    same()


@pytest.mark.parametrize(("form", "code", "size"), [(SINGLE, "d95730", 4), (DOUBLE, "dd5730", 8)])
def test_store(processor, form, code, size):
    @given(controls, extended)
    @example(0x3F, 0x3FFF << 64 | (1 << 64) - 1)  # It rounds up to a power of two.
    def same(control, a):
        work = Work(control)
        ours = float80.to_memory(work, from_extended(a), form)
        _, status, memory = processor(code, control, a)
        assert ours.to_bytes(size, "little") == memory[:size]
        check(work, memory, status)

    same()


@pytest.mark.parametrize(("bits", "code"), [(16, "df5f30"), (32, "db5f30"), (64, "df7f30")])
def test_store_of_an_integer(processor, bits, code):
    @given(controls, extended)
    def same(control, a):
        work = Work(control)
        ours = float80.to_integer(work, from_extended(a), bits)
        _, status, memory = processor(code, control, a)
        assert ours.to_bytes(bits // 8, "little") == memory[: bits // 8]
        check(work, memory, status)

    same()


@given(controls, extended)
def test_round_to_integer(processor, control, a):
    work = Work(control)
    ours = float80.round_to_integer(work, from_extended(a))
    theirs, status, _ = processor("d9fc", control, a)
    assert f"{ours:020x}" == f"{theirs:020x}"
    check(work, theirs, status)


# Loads onto a stack of two, with room above.
@pytest.mark.parametrize(("form", "code", "size"), [(SINGLE, "d94730", 4), (DOUBLE, "dd4730", 8)])
def test_load(processor, form, code, size):
    top = 8 * size - 1 - (form[0] - 1)
    numbers = st.one_of(
        st.integers(0, (1 << 8 * size) - 1),
        st.builds(
            lambda sign, exponent, fraction: sign << 8 * size - 1 | exponent << form[0] - 1 | fraction,
            st.integers(0, 1),
            st.sampled_from([0, 1, (1 << top) - 1]),
            st.integers(0, (1 << form[0] - 1) - 1),
        ),
    )

    @given(controls, numbers)
    def same(control, bits):
        work = Work(control)
        ours = float80.load(work, from_memory(bits, form))
        theirs, status, _ = processor(code, control, memory=bits.to_bytes(size, "little"))
        assert f"{ours:020x}" == f"{theirs:020x}"
        assert work.flags == status & EXCEPTIONS

    same()


@given(controls, st.integers(-(1 << 63), (1 << 63) - 1))
def test_load_of_an_integer(processor, control, value):
    theirs, status, _ = processor("df6f30", control, memory=value.to_bytes(8, "little", signed=True))
    assert f"{float80.exact(from_integer(value)):020x}" == f"{theirs:020x}"
    assert not status & EXCEPTIONS
