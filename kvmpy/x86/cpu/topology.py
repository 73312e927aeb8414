"""Which vCPU is which, in CPUID: one socket, a core with one thread for each vCPU, APIC ids as vCPU ids.

Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
"""

from __future__ import annotations

from kvmpy.kvm import CpuidEntry
from kvmpy.kvm.cpuid import KVM_CPUID_FLAG_SIGNIFICANT_INDEX

MAX_LEAF = 0x0
FEATURES = 0x1
CACHES = 0x4
EXTENDED_TOPOLOGY = 0xB
EXTENDED_TOPOLOGY_V2 = 0x1F
EXTENDED_FEATURES = 0x80000001
SIZES = 0x80000008
AMD_CACHES = 0x8000001D
AMD_TOPOLOGY = 0x8000001E
AMD_EXTENDED_TOPOLOGY = 0x80000026

FEATURES_EDX_HTT = 1 << 28
EXTENDED_FEATURES_ECX_CMP_LEGACY = 1 << 1

TOPOLOGY_SMT = 1
TOPOLOGY_CORE = 2

# EBX of leaf 0: the first four letters of the vendor, AuthenticAMD and HygonGenuine.
_AMD = (0x68747541, 0x6F677948)

# Leaf 4 and leaf 0x8000001d: a cache's type is 0 where the list ends; the last level of the socket is shared by all.
_CACHE_TYPE = 0x1F
_SHARED_LEVEL = 3

_OWN = frozenset((FEATURES, EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2, AMD_TOPOLOGY))


def is_amd(entries: list[CpuidEntry]) -> bool:
    """Whether this is the CPUID of an AMD processor, or one of that line."""
    return any(entry.function == MAX_LEAF and entry.ebx in _AMD for entry in entries)


def for_machine(entries: list[CpuidEntry], vcpus: int) -> list[CpuidEntry]:
    """`entries`, changed in place, with the topology of `vcpus` vCPUs, as far as it is the same for all of them.

    The list that is returned may have other entries for the topology leaves.
    """
    bits = (vcpus - 1).bit_length()
    amd = is_amd(entries)
    result = []
    leaves = 0
    topologies = {EXTENDED_TOPOLOGY}
    for entry in entries:
        function = entry.function
        if function in (EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2):
            topologies.add(function)
            continue
        result.append(entry)
        if function == MAX_LEAF:
            leaves = entry.eax
        elif function == FEATURES:
            entry.ebx = entry.ebx & 0x0000FFFF | min(vcpus, 255) << 16
            entry.edx = entry.edx | FEATURES_EDX_HTT if vcpus > 1 else entry.edx & ~FEATURES_EDX_HTT
        elif function == CACHES and entry.eax & _CACHE_TYPE:
            cores = min(1 << bits, 64) - 1
            sharing = min(1 << bits, 4096) - 1 if _level(entry) >= _SHARED_LEVEL else 0
            entry.eax = entry.eax & 0x3FFF | sharing << 14 | cores << 26
        elif function == AMD_CACHES and entry.eax & _CACHE_TYPE:
            sharing = min(vcpus, 4096) - 1 if _level(entry) >= _SHARED_LEVEL else 0
            entry.eax = entry.eax & 0xFC003FFF | sharing << 14
        elif function == EXTENDED_FEATURES and amd:
            entry.ecx &= ~EXTENDED_FEATURES_ECX_CMP_LEGACY
            if vcpus > 1:
                entry.ecx |= EXTENDED_FEATURES_ECX_CMP_LEGACY
        elif function == SIZES and amd:
            entry.ecx = entry.ecx & 0xFFFF0F00 | min(vcpus - 1, 255) | bits << 12
        elif function == AMD_EXTENDED_TOPOLOGY:
            # It would win over leaf 0xb, which says all that there is to say.
            entry.eax = entry.ebx = entry.ecx = entry.edx = 0
    flags = KVM_CPUID_FLAG_SIGNIFICANT_INDEX
    for function in sorted(topologies):
        if function <= leaves:
            # Threads of a core, then cores of the socket; KVM itself answers for the levels above.
            result.append(CpuidEntry(function, 0, flags, 0, 1, TOPOLOGY_SMT << 8))
            result.append(CpuidEntry(function, 1, flags, bits, vcpus, TOPOLOGY_CORE << 8 | 1))
    return result


def for_vcpu(entries: list[CpuidEntry], apic_id: int) -> list[CpuidEntry]:
    """The CPUID of the vCPU with `apic_id`, from what `for_machine` made, which stays as it is and is shared."""
    return [_own(entry, apic_id) if entry.function in _OWN else entry for entry in entries]


def _own(entry: CpuidEntry, apic_id: int) -> CpuidEntry:
    copy = CpuidEntry(entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx)
    if copy.function == FEATURES:
        copy.ebx = copy.ebx & 0x00FFFFFF | (apic_id & 0xFF) << 24
    elif copy.function == AMD_TOPOLOGY:
        # One thread a core, one node a socket.
        copy.eax, copy.ebx, copy.ecx, copy.edx = apic_id, apic_id & 0xFF, 0, 0
    else:
        copy.edx = apic_id
    return copy


def _level(entry: CpuidEntry) -> int:
    return entry.eax >> 5 & 7
