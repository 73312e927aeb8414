"""CPUID for a machine's vCPUs: what KVM supports, told apart by APIC id (Intel SDM volume 2, CPUID)."""

from __future__ import annotations

from kvmpy.kvm import CpuidEntry

FEATURES = 0x1
EXTENDED_TOPOLOGY = 0xB
EXTENDED_TOPOLOGY_V2 = 0x1F

FEATURES_ECX_TSC_DEADLINE = 1 << 24
FEATURES_ECX_HYPERVISOR = 1 << 31
FEATURES_EDX_HTT = 1 << 28

TOPOLOGY_SMT = 1
TOPOLOGY_CORE = 2


def cpuid_for(supported: list[CpuidEntry], apic_id: int, vcpus: int) -> list[CpuidEntry]:
    """CPUID of the vCPU with `apic_id` in a machine of `vcpus` (one socket, a core each), from what KVM supports."""
    entries = []
    for entry in supported:
        copy = CpuidEntry(entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx)
        if copy.function == FEATURES:
            copy.ebx = (copy.ebx & 0x0000FFFF) | min(vcpus, 255) << 16 | (apic_id & 0xFF) << 24
            copy.ecx |= FEATURES_ECX_HYPERVISOR | FEATURES_ECX_TSC_DEADLINE
            copy.edx = copy.edx | FEATURES_EDX_HTT if vcpus > 1 else copy.edx & ~FEATURES_EDX_HTT
        elif copy.function in (EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2):
            _set_topology(copy, apic_id, vcpus)
        entries.append(copy)
    return entries


def _set_topology(entry: CpuidEntry, apic_id: int, vcpus: int) -> None:
    """One level of the topology leaf: threads of a core (one), then cores of the socket (all)."""
    entry.edx = apic_id
    if entry.index == 0:
        entry.eax, entry.ebx, entry.ecx = 0, 1, TOPOLOGY_SMT << 8
    elif entry.index == 1:
        entry.eax, entry.ebx, entry.ecx = (vcpus - 1).bit_length(), vcpus, TOPOLOGY_CORE << 8 | 1
    else:
        entry.eax = entry.ebx = 0
        entry.ecx = entry.index
