"""kvmpy.x86.cpu.template: Firecracker's custom CPU templates, good and hostile."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import ConfigError
from kvmpy.kvm import CpuidEntry
from kvmpy.x86.cpu.template import MAX_MODIFIERS, MAX_SIZE, load_template, parse_bitmap, parse_template


def refusal(function, *arguments):
    """The `ConfigError` that the call raises, or None."""
    try:
        function(*arguments)
    except ConfigError as error:
        return error
    return None


def bits(width):
    return st.text(alphabet="01x", min_size=1, max_size=width)


def template(**parts):
    return parse_template(json.dumps(parts).encode())


def leaf(**changes):
    whole = {"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [{"register": "ebx", "bitmap": "0b1x0"}]}
    return {key: value for key, value in (whole | changes).items() if value is not None}


class FakeVcpu:
    """MSRs that can be read, of which some take no value."""

    def __init__(self, msrs, fixed=()):
        self.values = dict(msrs)
        self.fixed = fixed

    def msrs(self, indices):
        return {index: self.values[index] for index in indices if index in self.values}

    def set_msr(self, index, value):
        if index in self.fixed:
            return False
        self.values[index] = value
        return True


def test_a_whole_template_is_read():
    read = parse_template(b"""
        {"kvm_capabilities": ["121", "!56"],
         "cpuid_modifiers": [{"leaf": "0x80000001", "subleaf": "0b0", "flags": 0,
                              "modifiers": [{"register": "ecx", "bitmap": "0bxxxx_xxxx_xxxx_xxxx_xxxx_xxxx_x1x0_xxxx"},
                                            {"register": "edx", "bitmap": "x1"}]}],
         "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1xx0"}]}""")
    assert read.capabilities == [121]
    [(number, subleaf, flags, modifiers)] = read.cpuid
    assert (number, subleaf, flags) == (0x80000001, 0, 0)
    assert [(register, bitmap.mask, bitmap.value) for register, bitmap in modifiers] == [
        ("ecx", 0b01010000, 0b01000000),
        ("edx", 0b01, 0b01),
    ]
    [(index, bitmap)] = read.msrs
    assert (index, bitmap.mask, bitmap.value) == (0x10A, 0b1001, 0b1000)


def test_an_empty_template_changes_nothing():
    read = parse_template(b"{}")
    assert (read.capabilities, read.cpuid, read.msrs) == ([], [], [])


@given(bits(32), st.integers(0, (1 << 32) - 1))
def test_a_bitmap_does_to_each_bit_what_it_says(text, register):
    changed = parse_bitmap("0b" + text, "here", 32).apply(register)
    for bit in range(32):
        sign = text[::-1][bit] if bit < len(text) else "x"
        assert changed >> bit & 1 == (register >> bit & 1 if sign == "x" else int(sign))
    assert changed >> 32 == 0


@given(bits(64))
def test_underscores_and_the_prefix_change_no_bitmap(text):
    plain = parse_bitmap(text, "here", 64)
    grouped = parse_bitmap("0b" + "_".join(text), "here", 64)
    assert (plain.mask, plain.value) == (grouped.mask, grouped.value)


@given(bits(64), st.integers(0, (1 << 64) - 1))
def test_a_bitmap_twice_is_as_once(text, register):
    bitmap = parse_bitmap(text, "here", 64)
    assert bitmap.apply(bitmap.apply(register)) == bitmap.apply(register)


@given(st.text(max_size=40))
def test_any_text_is_a_bitmap_or_refused(text):
    digits = text.removeprefix("0b").replace("_", "")
    error = refusal(parse_bitmap, text, "here", 32)
    assert (error is None) == (set(digits) <= set("01x") and 0 < len(digits) <= 32)
    assert error is None or error.path == "here"


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ({"cpuid": []}, "cpu"),
        ({"cpuid_modifiers": {}}, "cpu.cpuid_modifiers"),
        ({"cpuid_modifiers": [3]}, "cpu.cpuid_modifiers[0]"),
        ({"cpuid_modifiers": [leaf(), leaf(other=1)]}, "cpu.cpuid_modifiers[1]"),
        ({"cpuid_modifiers": [leaf(leaf=None)]}, "cpu.cpuid_modifiers[0]"),
        ({"cpuid_modifiers": [leaf(leaf=7)]}, "cpu.cpuid_modifiers[0].leaf"),
        ({"cpuid_modifiers": [leaf(leaf="7")]}, "cpu.cpuid_modifiers[0].leaf"),
        ({"cpuid_modifiers": [leaf(leaf="0x")]}, "cpu.cpuid_modifiers[0].leaf"),
        ({"cpuid_modifiers": [leaf(leaf="0x1_0")]}, "cpu.cpuid_modifiers[0].leaf"),
        ({"cpuid_modifiers": [leaf(leaf="0x-1")]}, "cpu.cpuid_modifiers[0].leaf"),
        ({"cpuid_modifiers": [leaf(leaf="0x100000000")]}, "cpu.cpuid_modifiers[0].leaf"),
        ({"cpuid_modifiers": [leaf(subleaf="0b2")]}, "cpu.cpuid_modifiers[0].subleaf"),
        ({"cpuid_modifiers": [leaf(flags=8)]}, "cpu.cpuid_modifiers[0].flags"),
        ({"cpuid_modifiers": [leaf(flags=True)]}, "cpu.cpuid_modifiers[0].flags"),
        ({"cpuid_modifiers": [leaf(flags=1.0)]}, "cpu.cpuid_modifiers[0].flags"),
        ({"cpuid_modifiers": [leaf(modifiers=None)]}, "cpu.cpuid_modifiers[0]"),
        (
            {"cpuid_modifiers": [leaf(modifiers=[{"register": "EBX", "bitmap": "0b1"}])]},
            "cpu.cpuid_modifiers[0].modifiers[0].register",
        ),
        (
            {"cpuid_modifiers": [leaf(modifiers=[{"register": [], "bitmap": "0b1"}])]},
            "cpu.cpuid_modifiers[0].modifiers[0].register",
        ),
        (
            {"cpuid_modifiers": [leaf(modifiers=[{"register": "ebx", "bitmap": "0b" + "1" * 33}])]},
            "cpu.cpuid_modifiers[0].modifiers[0].bitmap",
        ),
        ({"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b2"}]}, "cpu.msr_modifiers[0].bitmap"),
        ({"msr_modifiers": [{"addr": "0x10a", "bitmap": 5}]}, "cpu.msr_modifiers[0].bitmap"),
        ({"msr_modifiers": [{"addr": "0x10a"}]}, "cpu.msr_modifiers[0]"),
        ({"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1"}] * (MAX_MODIFIERS + 1)}, "cpu.msr_modifiers"),
        ({"kvm_capabilities": [121]}, "cpu.kvm_capabilities[0]"),
        ({"kvm_capabilities": ["!"]}, "cpu.kvm_capabilities[0]"),
        ({"kvm_capabilities": ["²"]}, "cpu.kvm_capabilities[0]"),
        ({"kvm_capabilities": ["4294967296"]}, "cpu.kvm_capabilities[0]"),
        ({"reg_modifiers": []}, "cpu.reg_modifiers"),
        ({"vcpu_features": []}, "cpu.vcpu_features"),
    ],
)
def test_what_is_wrong_is_refused_where_it_is(parts, path):
    with pytest.raises(ConfigError) as caught:
        template(**parts)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe{}",
        b"{}{}",
        b'{"msr_modifiers": [], "msr_modifiers": []}',
        b"[" * 100_000,
        b'{"cpuid_modifiers":' * 20_000,
        b'{"kvm_capabilities": ' + b"9" * 5000 + b"}",
        b" " * (MAX_SIZE + 1),
    ],
)
def test_what_is_no_template_is_refused_in_one_short_sentence(data):
    with pytest.raises(ConfigError) as caught:
        parse_template(data)
    assert len(str(caught.value)) < 300


KEYS = [
    "kvm_capabilities", "cpuid_modifiers", "msr_modifiers", "leaf", "subleaf", "flags", "modifiers", "register",
    "bitmap", "addr", "other",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["0x1", "0b1x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_read_or_refused(document):
    error = refusal(parse_template, json.dumps(document).encode())
    assert error is None or error.path.startswith("cpu")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    error = refusal(parse_template, data)
    assert error is None or error.path.startswith("cpu")


def test_a_template_changes_cpuid_and_its_flags():
    entries = [CpuidEntry(0x7, 0, 0, ebx=0b011), CpuidEntry(0x7, 1, 1, ebx=0b011)]
    template(cpuid_modifiers=[leaf()]).apply_cpuid(entries)
    assert entries == [CpuidEntry(0x7, 0, 1, ebx=0b110), CpuidEntry(0x7, 1, 1, ebx=0b011)]


def test_a_later_modifier_wins():
    entries = [CpuidEntry(0x7)]
    again = leaf(modifiers=[{"register": "ebx", "bitmap": "0b0xx"}])
    template(cpuid_modifiers=[leaf(), again]).apply_cpuid(entries)
    assert entries[0].ebx == 0


def test_a_leaf_that_kvm_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"cpu.cpuid_modifiers\[0\]: .*leaf 0x7, sub-leaf 0x0"):
        template(cpuid_modifiers=[leaf()]).apply_cpuid([CpuidEntry(0x7, 1)])


def test_msrs_are_changed_on_what_is_there():
    vcpu = FakeVcpu({0x10A: 0b0110, 0x8B: 5})
    template(msr_modifiers=[{"addr": "0x10a", "bitmap": "0b1xx0"}]).apply_msrs(vcpu)
    assert vcpu.values == {0x10A: 0b1110, 0x8B: 5}


def test_an_msr_that_kvm_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"cpu.msr_modifiers\[0\]: .*no MSR 0x10a"):
        template(msr_modifiers=[{"addr": "0x10a", "bitmap": "0b1"}]).apply_msrs(FakeVcpu({}))


def test_an_msr_that_cannot_be_set_is_refused():
    with pytest.raises(ConfigError, match="MSR 0x10a be 0x1; it is 0x0"):
        template(msr_modifiers=[{"addr": "0x10a", "bitmap": "0b1"}]).apply_msrs(FakeVcpu({0x10A: 0}, fixed={0x10A}))


def test_an_msr_that_is_right_already_need_not_be_set():
    template(msr_modifiers=[{"addr": "0x10a", "bitmap": "0b0"}]).apply_msrs(FakeVcpu({0x10A: 0}, fixed={0x10A}))


def test_a_file_is_read(tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes(b'{"kvm_capabilities": ["7"]}')
    assert load_template(str(path)).capabilities == [7]


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "big"])
def test_a_file_that_is_no_template_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "t.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "big":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="cpu: the template"):
        load_template(str(path))
