"""kvmpy.x86.cpu.models: levels of the psABI and single features."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.config.cpu import LEVELS, CpuConfig, parse_cpu
from kvmpy.errors import ConfigError
from kvmpy.kvm import CpuidEntry
from kvmpy.x86.cpu.features import PLACES, REGISTERS, present
from kvmpy.x86.cpu.models import apply, available, select

ALL = 0xFFFFFFFF


def supported(*without):
    """A KVM that has every feature there is, but for those named."""
    table = {(leaf, subleaf): CpuidEntry(leaf, subleaf) for leaf, subleaf, _ in REGISTERS}
    for leaf, subleaf, register in REGISTERS:
        setattr(table[leaf, subleaf], register, ALL)
    for name in without:
        for leaf, subleaf, register, bit in PLACES[name]:
            entry = table[leaf, subleaf]
            setattr(entry, register, getattr(entry, register) & ~(1 << bit))
    table[0xD, 0] = CpuidEntry(0xD, 0, 1, eax=0x602FF)
    for index in (2, 3, 4, 5, 6, 7, 9, 17, 18):
        table[0xD, index] = CpuidEntry(0xD, index, 1, eax=64)
    return list(table.values())


def made(text, entries=None, emulated=()):
    entries = supported() if entries is None else entries
    selection = select(parse_cpu(text))
    found = available(selection.on, entries)
    return apply(selection, entries, found, lambda: emulated)


def names(text, *arguments):
    return present(made(text, *arguments))


def test_host_has_everything():
    assert names("host") == set(PLACES)


@pytest.mark.parametrize(
    ("level", "first", "not_yet"),
    [("x86-64-v1", "sse2", "pni"), ("x86-64-v2", "sse4_2", "avx"), ("x86-64-v3", "avx2", "avx512f")],
)
def test_a_level_ends_where_the_next_begins(level, first, not_yet):
    assert first in names(level)
    assert not_yet not in names(level)


def test_each_level_has_what_the_one_before_has():
    sets = [names(level) for level in LEVELS]
    assert all(lower < higher for lower, higher in pairwise(sets))
    assert "avx512vl" in sets[-1]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_hides_what_is_in_none(level):
    assert not names(level) & {"aes", "rdrand", "sha_ni", "amx_tile", "vaes", "3dnow"}


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_keeps_what_an_operating_system_needs(level):
    assert names(level) >= {"apic", "x2apic", "nx", "smep", "smap", "pcid", "hypervisor", "kvmclock", "spec_ctrl"}


@given(st.sets(st.sampled_from(sorted(PLACES))), st.sampled_from(LEVELS))
def test_two_hosts_of_a_level_give_the_same_instructions(lacking, level):
    chosen = select(CpuConfig(level))
    lacking -= chosen.on
    rest = set(PLACES) - chosen.on - chosen.off
    assert names(level, supported(*lacking)) - rest == names(level) - rest


def test_what_the_host_lacks_stays_off_and_is_asked_for():
    assert "avx2" in select(CpuConfig("x86-64-v3")).on
    assert "avx2" not in names("x86-64-v3", supported("avx2"))


def test_a_feature_is_added_with_what_it_needs():
    assert names("x86-64-v1,+avx2") - names("x86-64-v1") == {
        "avx2", "avx", "xsave",
    }  # fmt: skip


def test_a_feature_is_removed_with_what_needs_it():
    gone = names("host") - names("host,-avx2")
    assert gone >= {"avx2", "avx512f", "avx512vl", "avx_vnni"}
    assert not gone & {"avx", "fma", "xsave"}


def test_a_feature_can_be_taken_from_a_level():
    assert names("x86-64-v2") - names("x86-64-v2,-popcnt") == {"popcnt"}


def test_all_bits_of_a_name_go():
    entries = {(entry.function, entry.index): entry for entry in made("host,-mmx,-kvmclock")}
    assert not entries[0x1, 0].edx >> 23 & 1
    assert not entries[0x80000001, 0].edx >> 23 & 1
    assert not entries[0x40000001, 0].eax & 0b1001


def test_what_kvm_emulates_can_be_added():
    emulated = [CpuidEntry(0x1, ecx=1 << 22)]
    assert "movbe" in names("host,+movbe", supported("movbe"), emulated)


def test_what_kvm_emulates_is_not_there_by_itself():
    assert "movbe" not in names("host,+aes", supported("movbe"), [CpuidEntry(0x1, ecx=1 << 22)])


def test_contrary_wishes_are_refused():
    with pytest.raises(ConfigError, match="cpu: avx512vl is to be had, and needs avx, which is to be left out"):
        select(parse_cpu("host,+avx512vl,-avx"))


@pytest.mark.parametrize("text", ["host,+avx22", "x86-64-v2,-avx22"])
def test_an_unknown_feature_is_refused(text):
    with pytest.raises(ConfigError, match="did you mean avx2"):
        select(parse_cpu(text))


@pytest.mark.parametrize(
    ("text", "mask"), [("host,-avx512f", 0xE0), ("host,-pku", 0x200), ("host,-mpx", 0x18), ("host,-amx_tile", 0x60000)]
)
def test_extended_state_goes_with_its_feature(text, mask):
    before = {entry.index: entry for entry in made("host") if entry.function == 0xD}
    after = {entry.index: entry for entry in made(text) if entry.function == 0xD}
    assert before[0].eax & ~after[0].eax == mask
    assert before.keys() - after.keys() == {index for index in before if mask >> index & 1}


def test_all_extended_state_goes_with_xsave():
    left = [entry for entry in made("host,-xsave") if entry.function == 0xD]
    assert [(entry.index, entry.eax) for entry in left] == [(1, 0), (0, 0)]


@given(st.sets(st.sampled_from(sorted(PLACES)), max_size=4), st.sets(st.sampled_from(sorted(PLACES)), max_size=4))
def test_what_is_asked_for_is_what_is_there(added, removed):
    config = CpuConfig(added=added - removed, removed=removed)
    if any(name in select(CpuConfig(removed=removed)).off for name in config.added):
        with pytest.raises(ConfigError, match="which is to be left out"):
            select(config)
        return
    selection = select(config)
    found = present(made(",".join(["host", *(f"+{n}" for n in added - removed), *(f"-{n}" for n in removed)])))
    assert found >= selection.on >= added - removed
    assert not found & selection.off
    assert selection.off >= removed
