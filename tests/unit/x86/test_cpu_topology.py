"""kvmpy.x86.cpu.topology: every leaf that says which vCPU is which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.kvm import CpuidEntry
from kvmpy.x86.cpu.topology import for_machine, for_vcpu

INTEL, AMD = 0x756E6547, 0x68747541


def cache(function, index, kind, level):
    return CpuidEntry(function, index, 1, eax=kind | level << 5 | 0xFFFFC000)


def cpuid(vendor=INTEL, leaves=0x1F):
    """What a KVM may support, with topologies of the host in it that must go."""
    return [
        CpuidEntry(0x0, eax=leaves, ebx=vendor),
        CpuidEntry(0x1, ebx=0xAABB08CC, edx=0),
        *(cache(0x4, index, kind, level) for index, kind, level in ((0, 1, 1), (1, 2, 1), (2, 3, 2), (3, 3, 3))),
        CpuidEntry(0x4, 4, 1),
        CpuidEntry(0xB, 0, 1, 7, 7, 7, 7),
        CpuidEntry(0x1F, 0, 1, 7, 7, 7, 7),
        CpuidEntry(0x80000001, ecx=1 << 22),
        CpuidEntry(0x80000008, ecx=0x2F0FF),
        *(cache(0x8000001D, index, kind, level) for index, kind, level in ((0, 1, 1), (3, 3, 3))),
        CpuidEntry(0x8000001E, 0, 0, 7, 7, 7, 7),
        CpuidEntry(0x80000026, 0, 1, 7, 7, 7, 7),
    ]


def guest(vcpus, apic_id=0, **options):
    entries = for_vcpu(for_machine(cpuid(**options), vcpus), apic_id)
    return {(entry.function, entry.index): entry for entry in entries}


def test_leaf_1_has_apic_id_count_and_the_hosts_line_size():
    assert guest(4, 3)[1, 0].ebx == 3 << 24 | 4 << 16 | 0x08CC


@pytest.mark.parametrize(("vcpus", "htt"), [(1, 0), (2, 1)])
def test_leaf_1_has_htt_for_more_than_one(vcpus, htt):
    assert guest(vcpus)[1, 0].edx >> 28 & 1 == htt


@pytest.mark.parametrize("leaf", [0xB, 0x1F])
@pytest.mark.parametrize(("vcpus", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (254, 8)])
def test_topology_leaves_have_a_thread_a_core_and_all_cores_a_socket(leaf, vcpus, bits):
    table = guest(vcpus, vcpus - 1)
    threads, cores = table[leaf, 0], table[leaf, 1]
    assert (threads.eax, threads.ebx, threads.ecx, threads.edx) == (0, 1, 0x100, vcpus - 1)
    assert (cores.eax, cores.ebx, cores.ecx, cores.edx) == (bits, vcpus, 0x201, vcpus - 1)


def test_topology_leaves_depend_on_the_sub_leaf():
    assert all(guest(2)[leaf, index].flags == 1 for leaf in (0xB, 0x1F) for index in (0, 1))


def test_topology_leaves_that_no_guest_can_reach_are_left_out():
    assert {leaf for leaf, _ in guest(2, leaves=0xB)} & {0xB, 0x1F} == {0xB}
    assert {leaf for leaf, _ in guest(2, leaves=0xA)} & {0xB, 0x1F} == set()


def test_leaf_4_shares_only_the_last_cache():
    table = guest(3)
    sharing = [table[4, index].eax >> 14 & 0xFFF for index in range(4)]
    assert sharing == [0, 0, 0, 3]


@pytest.mark.parametrize(("vcpus", "cores"), [(1, 0), (3, 3), (64, 63), (254, 63)])
def test_leaf_4_has_the_cores_of_the_socket(vcpus, cores):
    assert guest(vcpus)[4, 0].eax >> 26 == cores


def test_the_end_of_leaf_4_stays_the_end():
    assert guest(4)[4, 4].eax == 0


def test_amd_caches_are_shared_by_exactly_the_vcpus():
    table = guest(3, vendor=AMD)
    assert [table[0x8000001D, index].eax >> 14 & 0xFFF for index in (0, 3)] == [0, 2]


def test_amd_sizes_have_cores_and_bits_and_keep_the_rest():
    assert guest(5, vendor=AMD)[0x80000008, 0].ecx == 0x20000 | 3 << 12 | 4


def test_amd_extended_apic_id():
    entry = guest(4, 2, vendor=AMD)[0x8000001E, 0]
    assert (entry.eax, entry.ebx, entry.ecx, entry.edx) == (2, 2, 0, 0)


@pytest.mark.parametrize(("vcpus", "legacy"), [(1, 0), (2, 2)])
def test_amd_says_that_htt_means_cores(vcpus, legacy):
    assert guest(vcpus, vendor=AMD)[0x80000001, 0].ecx == 1 << 22 | legacy


def test_amd_bits_are_left_alone_on_intel():
    table = guest(4)
    assert (table[0x80000008, 0].ecx, table[0x80000001, 0].ecx) == (0x2F0FF, 1 << 22)


def test_the_newest_amd_leaf_is_silent():
    entry = guest(4, vendor=AMD)[0x80000026, 0]
    assert (entry.eax, entry.ebx, entry.ecx, entry.edx) == (0, 0, 0, 0)


@given(st.integers(1, 254), st.sampled_from([INTEL, AMD]))
def test_apic_ids_differ_and_fit(vcpus, vendor):
    machine = for_machine(cpuid(vendor), vcpus)
    seen = set()
    for apic_id in range(vcpus):
        table = {(entry.function, entry.index): entry for entry in for_vcpu(machine, apic_id)}
        assert table[0xB, 0].edx == table[0xB, 1].edx == table[1, 0].ebx >> 24 == table[0x8000001E, 0].eax
        assert table[0xB, 0].edx >> table[0xB, 1].eax == 0
        seen.add(table[0xB, 0].edx)
    assert len(seen) == vcpus


def test_one_vcpus_cpuid_leaves_the_machines_alone():
    machine = for_machine(cpuid(), 2)
    before = [repr(entry) for entry in machine]
    for_vcpu(machine, 1)
    assert [repr(entry) for entry in machine] == before
