"""CPUID for a machine's vCPUs: what KVM supports, told apart by APIC id (Intel SDM volume 2, CPUID)."""

from __future__ import annotations

from kvmpy.kvm import CpuidEntry
from kvmpy.x86.cpu.setup import platform_defaults
from kvmpy.x86.cpu.topology import for_machine, for_vcpu


def cpuid_for(supported: list[CpuidEntry], apic_id: int, vcpus: int) -> list[CpuidEntry]:
    """CPUID of the vCPU with `apic_id` in a machine of `vcpus` (one socket, a core each), from what KVM supports."""
    copies = [CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in supported]
    platform_defaults(copies, tsc_deadline=True)
    return for_vcpu(for_machine(copies, vcpus), apic_id)
