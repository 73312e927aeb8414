"""`CpuSetup`: gives each vCPU of a machine the CPUID and the MSRs that its configuration asks for.

In this order: what KVM supports, the platform's defaults, the template, the model and single features, the topology.
Only bits that KVM supports or emulates are set; where anything was asked for, CPUID is read back from the first vCPU,
since some hosts' KVM forces features on or off, and what is missing is an error.
"""

from __future__ import annotations

from kvmpy.errors import ConfigError, KvmError
from kvmpy.kvm import CpuidEntry
from kvmpy.kvm.capabilities import KVM_CAP_TSC_DEADLINE_TIMER
from kvmpy.x86.cpu.topology import for_machine, for_vcpu, is_amd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.config.cpu import CpuConfig
    from kvmpy.kvm import System, Vcpu
    from kvmpy.x86.cpu.models import Selection
    from kvmpy.x86.cpu.template import Template

FEATURES = 0x1
FEATURES_ECX_TSC_DEADLINE = 1 << 24
FEATURES_ECX_HYPERVISOR = 1 << 31

STRUCTURED_FEATURES = 0x7
STRUCTURED_FEATURES_EDX_ARCH_CAPABILITIES = 1 << 29

# The hypervisor's leaves (Linux, virt/kvm/x86/cpuid.rst): the first has the highest of them and KVM's signature.
HYPERVISOR = 0x40000000
# Frequencies of TSC and local APIC in kHz, as VMware defined the leaf.
HYPERVISOR_TIMING = 0x40000010
# KVM's local APIC timer counts nanoseconds.
APIC_KHZ = 1_000_000

IA32_MISC_ENABLE = 0x1A0
MISC_ENABLE_FAST_STRINGS = 1
IA32_MTRR_DEF_TYPE = 0x2FF
# MTRRs on, fixed ones off, all memory write-back.
MTRR_WRITE_BACK = 1 << 11 | 6
# AMD: the TSC counts at the rate of P0, without which Linux complains of the firmware.
HWCR = 0xC0010015
HWCR_TSC_FREQ_SEL = 1 << 24


class CpuSetup:
    """The processor of a machine with `vcpus` vCPUs, as `config` wants it; None is the host's as it is.

    `apply` gives it to a vCPU.  `notes` are sentences on what KVM did not do as asked, after the first `apply`.
    Raises a `ConfigError` for unknown features, a bad template, and what this host's KVM cannot give.
    """

    __slots__ = ("_amd", "_entries", "_selection", "_shared", "_template", "_vcpus", "notes")

    def __init__(self, config: CpuConfig | None, system: System, vcpus: int) -> None:
        self._vcpus = vcpus
        self._shared: list[CpuidEntry] | None = None
        self._template: Template | None = None
        self._selection: Selection | None = None
        self.notes: list[str] = []
        self._entries = system.supported_cpuid()
        self._amd = is_amd(self._entries)
        deadline = bool(system.check_extension(KVM_CAP_TSC_DEADLINE_TIMER))
        if config is None or config.plain:
            platform_defaults(self._entries, tsc_deadline=deadline)
        else:
            self._customize(config, system, deadline)

    def _customize(self, config: CpuConfig, system: System, deadline: bool) -> None:
        from kvmpy.x86.cpu import models

        selection = self._selection = models.select(config)
        found = models.available(selection.on, self._entries)
        platform_defaults(self._entries, tsc_deadline=deadline)
        if config.template is not None:
            from kvmpy.x86.cpu.template import load_template

            self._template = load_template(config.template)
            self._template.check(system)
            self._template.apply_cpuid(self._entries)
        self._entries = models.apply(selection, self._entries, found, system.emulated_cpuid)

    def apply(self, vcpu: Vcpu, apic_id: int, *, boot_msrs: bool = True) -> None:
        """Gives `vcpu` its CPUID and MSRs, before its first run.

        Without `boot_msrs` the MSRs stay as a reset leaves them, which is what firmware expects.
        """
        first = self._shared is None
        if self._shared is None:
            self._shared = for_machine(_with_timing(self._entries, vcpu), self._vcpus)
        vcpu.set_cpuid(for_vcpu(self._shared, apic_id))
        if boot_msrs:
            _set_boot_msrs(vcpu, self._amd)
        if self._template is not None:
            self._template.apply_msrs(vcpu)
        if first and self._selection is not None:
            self._compare(vcpu, self._selection)

    def entries(self, apic_id: int) -> list[CpuidEntry]:
        """What was asked for the vCPU with `apic_id`; after the first `apply`."""
        return for_vcpu(self._shared or [], apic_id)

    def forced(self, vcpu: Vcpu, apic_id: int) -> list[str]:
        """How the CPUID that `vcpu` has differs from what was asked for it, as `features.forced` writes it."""
        from kvmpy.x86.cpu.features import forced

        return forced(self.entries(apic_id), vcpu.cpuid())

    def _compare(self, vcpu: Vcpu, selection: Selection) -> None:
        from kvmpy.x86.cpu.features import present

        names = present(vcpu.cpuid())
        missing = sorted(selection.on - names)
        if missing:
            raise ConfigError("cpu", f"this host's KVM does not give its guests {', '.join(missing)}")
        kept = sorted(selection.off & names)
        if kept:
            self.notes.append(
                "this host's KVM keeps on what was to be left out; Linux does not use it with "
                f"clearcpuid={','.join(kept)} on its command line"
            )


def platform_defaults(entries: list[CpuidEntry], *, tsc_deadline: bool) -> None:
    """Changes in place what KVM reports otherwise than a guest of this machine is to see it."""
    amd = is_amd(entries)
    for entry in entries:
        if entry.function == FEATURES:
            entry.ecx |= FEATURES_ECX_HYPERVISOR | (FEATURES_ECX_TSC_DEADLINE if tsc_deadline else 0)
        elif entry.function == STRUCTURED_FEATURES and entry.index == 0 and amd:
            # KVM emulates the MSR everywhere; no processor of AMD's has it, and some guests are taken aback.
            entry.edx &= ~STRUCTURED_FEATURES_EDX_ARCH_CAPABILITIES


def _with_timing(entries: list[CpuidEntry], vcpu: Vcpu) -> list[CpuidEntry]:
    """`entries` with the TSC's frequency in the hypervisor's leaves, where KVM knows it and has not said it yet."""
    try:
        khz = vcpu.tsc_khz()
    except KvmError:
        return entries
    base = next((entry for entry in entries if entry.function == HYPERVISOR), None)
    if not khz or base is None or base.eax >= HYPERVISOR_TIMING:
        return entries
    base.eax = HYPERVISOR_TIMING
    return [*entries, CpuidEntry(HYPERVISOR_TIMING, eax=khz, ebx=APIC_KHZ)]


def _set_boot_msrs(vcpu: Vcpu, amd: bool) -> None:
    """What a PC's firmware would have set, as far as this KVM lets us; what it refuses stays as it is."""
    _set_bit(vcpu, IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS)
    vcpu.set_msr(IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK)
    if amd:
        _set_bit(vcpu, HWCR, HWCR_TSC_FREQ_SEL)


def _set_bit(vcpu: Vcpu, index: int, bit: int) -> None:
    value = vcpu.msrs([index]).get(index)
    if value is not None and not value & bit:
        vcpu.set_msr(index, value | bit)
