"""kvmpy.x86.cpu.features: names, and what KVM forced."""

from __future__ import annotations

import pytest

from kvmpy.errors import ConfigError
from kvmpy.kvm import CpuidEntry
from kvmpy.x86.cpu.features import PLACES, REGISTERS, forced, places, present


@pytest.mark.parametrize(
    ("name", "place"),
    [
        # The last of each row of eight shows that no name before it is missing.
        ("mce", (0x1, 0, "edx", 7)),
        ("cmov", (0x1, 0, "edx", 15)),
        ("pbe", (0x1, 0, "edx", 31)),
        ("est", (0x1, 0, "ecx", 7)),
        ("popcnt", (0x1, 0, "ecx", 23)),
        ("hypervisor", (0x1, 0, "ecx", 31)),
        ("arat", (0x6, 0, "eax", 2)),
        ("hfi", (0x6, 0, "eax", 19)),
        ("epb", (0x6, 0, "ecx", 3)),
        ("smep", (0x7, 0, "ebx", 7)),
        ("avx512vl", (0x7, 0, "ebx", 31)),
        ("la57", (0x7, 0, "ecx", 16)),
        ("sgx_lc", (0x7, 0, "ecx", 30)),
        ("hybrid_cpu", (0x7, 0, "edx", 15)),
        ("spec_ctrl_ssbd", (0x7, 0, "edx", 31)),
        ("lam", (0x7, 1, "eax", 26)),
        ("prefetchiti", (0x7, 1, "edx", 14)),
        ("mcdt_no", (0x7, 2, "edx", 5)),
        ("xsaves", (0xD, 1, "eax", 3)),
        ("kvm_msi_ext_dest_id", (0x40000001, 0, "eax", 15)),
        ("kvmclock_stable_bit", (0x40000001, 0, "eax", 24)),
        ("syscall", (0x80000001, 0, "edx", 11)),
        ("3dnow", (0x80000001, 0, "edx", 31)),
        ("perfctr_core", (0x80000001, 0, "ecx", 23)),
        ("mwaitx", (0x80000001, 0, "ecx", 29)),
        ("nonstop_tsc", (0x80000007, 0, "edx", 8)),
        ("brs", (0x80000008, 0, "ebx", 31)),
        ("svme_addr_chk", (0x8000000A, 0, "edx", 28)),
        ("srso_no", (0x80000021, 0, "eax", 29)),
    ],
)
def test_a_name_is_where_the_manuals_have_it(name, place):
    assert places(name)[0] == place


def test_no_register_has_more_than_32_names():
    assert all(len(text.split()) <= 32 for text in REGISTERS.values())


def test_only_what_amd_repeats_and_kvmclock_have_several_bits():
    several = {name: where for name, where in PLACES.items() if len(where) > 1}
    assert several.pop("kvmclock") == [(0x40000001, 0, "eax", 0), (0x40000001, 0, "eax", 3)]
    assert all([place[0] for place in where] == [0x1, 0x80000001] for where in several.values())
    assert all(where[0][2:] == where[1][2:] for where in several.values())


@pytest.mark.parametrize(("name", "nearest"), [("avx22", "avx2"), ("AVX2", "avx2"), ("rdrnd", "rdrand")])
def test_an_unknown_name_comes_with_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=rf"cpu: there is no CPU feature '{name}'; did you mean {nearest}\?"):
        places(name)


def test_an_unknown_name_without_a_near_one_says_where_names_are():
    with pytest.raises(ConfigError, match="/proc/cpuinfo"):
        places("qqqqqq")


def test_features_are_present_by_name():
    entries = [CpuidEntry(0x1, ecx=1 << 25 | 1), CpuidEntry(0x7, 1, eax=1 << 4), CpuidEntry(0x7, 0, eax=1 << 4)]
    assert present(entries) == {"aes", "pni", "avx_vnni"}


def test_bits_without_a_name_are_no_features():
    assert present([CpuidEntry(0x1, ecx=1 << 16)]) == set()


def test_forced_features_are_told_by_name_and_sign():
    asked = [CpuidEntry(0x1, ecx=1 << 21), CpuidEntry(0x7)]
    got = [CpuidEntry(0x1, ecx=1 << 25), CpuidEntry(0x7, ebx=1 << 5)]
    assert forced(asked, got) == ["-x2apic", "+aes", "+avx2"]


def test_a_feature_with_two_bits_is_told_once():
    assert forced([], [CpuidEntry(0x1, edx=1), CpuidEntry(0x80000001, edx=1)]) == ["+fpu"]


def test_unnamed_bits_and_other_registers_are_told_by_place():
    asked = [CpuidEntry(0x7), CpuidEntry(0x8000001E, eax=2)]
    got = [CpuidEntry(0x7, ebx=1 << 22), CpuidEntry(0x8000001E, eax=1)]
    assert forced(asked, got) == ["+0x7.0.ebx[22]", "0x8000001e.0.eax=0x1"]


def test_a_leaf_that_is_gone_counts_as_zeros():
    assert forced([CpuidEntry(0x7, 1, eax=1 << 4)], []) == ["-avx_vnni"]


def test_what_follows_the_guest_is_not_told():
    asked = [CpuidEntry(0x1), CpuidEntry(0xD, 0, ebx=576)]
    assert forced(asked, [CpuidEntry(0x1, ecx=1 << 27), CpuidEntry(0xD, 0, ebx=832)]) == []


def test_the_same_is_not_told():
    entries = [CpuidEntry(0x1, ecx=3), CpuidEntry(0xB, 1, 1, 2, 3, 4, 5)]
    assert forced(entries, list(entries)) == []
