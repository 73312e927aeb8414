"""kvmpy.x86.cpu.setup on KVMs of our own making: one that does as it is told, and one that knows better."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from kvmpy.config.cpu import CpuConfig, parse_cpu
from kvmpy.errors import ConfigError, KvmError
from kvmpy.kvm import CpuidEntry
from kvmpy.x86.cpu import CpuSetup
from kvmpy.x86.cpu.features import PLACES, REGISTERS, present
from kvmpy.x86.cpu.setup import APIC_KHZ, HWCR, HWCR_TSC_FREQ_SEL, IA32_MISC_ENABLE, IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK

INTEL, AMD = 0x756E6547, 0x68747541


class FakeSystem:
    """A KVM that supports all features but `lacking`."""

    def __init__(self, vendor=INTEL, lacking=(), tsc_deadline=1):
        self.tsc_deadline = tsc_deadline
        table = {(leaf, subleaf): CpuidEntry(leaf, subleaf) for leaf, subleaf, _ in REGISTERS}
        for name, places in PLACES.items():
            for leaf, subleaf, register, bit in () if name in lacking else places:
                entry = table[leaf, subleaf]
                setattr(entry, register, getattr(entry, register) | 1 << bit)
        self.table = [
            CpuidEntry(0, eax=0x1F, ebx=vendor),
            CpuidEntry(0x40000000, eax=0x40000001),
            *table.values(),
        ]

    def supported_cpuid(self):
        return [CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in self.table]

    def emulated_cpuid(self):
        return []

    def check_extension(self, _capability):
        return self.tsc_deadline


class FakeVcpu:
    """Takes CPUID as it is given, but for `kept`, which it always has; knows the MSRs that `msrs` has."""

    def __init__(self, khz=2_000_000, kept=(), msrs=()):
        self.khz = khz
        self.kept = kept
        self.values = dict(msrs)

    def tsc_khz(self):
        if self.khz is None:
            raise KvmError("KVM_GET_TSC_KHZ", errno.EIO)
        return self.khz

    def set_cpuid(self, entries):
        self.entries = entries

    def cpuid(self):
        entries = [CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in self.entries]
        for name in self.kept:
            for leaf, subleaf, register, bit in PLACES[name]:
                entry = next(e for e in entries if (e.function, e.index) == (leaf, subleaf))
                setattr(entry, register, getattr(entry, register) | 1 << bit)
        return entries

    def msrs(self, indices):
        return {index: self.values[index] for index in indices if index in self.values}

    def set_msr(self, index, value):
        if index not in self.values:
            return False
        self.values[index] = value
        return True


def applied(text, vcpu=None, **host):
    vcpu = vcpu or FakeVcpu()
    setup = CpuSetup(parse_cpu(text), FakeSystem(**host), 2)
    setup.apply(vcpu, 0)
    return setup, present(vcpu.cpuid())


def test_a_level_that_the_host_has_is_given():
    setup, names = applied("x86-64-v3", lacking={"avx512f", "aes"})
    assert {"avx2", "abm", "fma"} <= names
    assert not {"avx512f", "sha_ni"} & names
    assert setup.notes == []


def test_a_level_that_the_host_lacks_is_refused_with_all_that_it_lacks():
    with pytest.raises(ConfigError, match=r"does not give its guests abm, avx2$"):
        applied("x86-64-v3", lacking={"abm", "avx2"})


def test_what_kvm_forces_on_counts_as_given():
    _, names = applied("host,+avx2", FakeVcpu(kept=["avx2"]), lacking={"avx2"})
    assert "avx2" in names


def test_what_kvm_keeps_on_is_noted():
    setup, _ = applied("host,-aes,-rdseed", FakeVcpu(kept=["aes"]))
    [note] = setup.notes
    assert "clearcpuid=aes on" in note


def test_what_kvm_forces_is_told_for_any_processor():
    vcpu = FakeVcpu(kept=["avx2"])
    setup = CpuSetup(None, FakeSystem(lacking={"avx2"}), 1)
    setup.apply(vcpu, 0)
    assert setup.forced(vcpu, 0) == ["+avx2"]
    assert setup.notes == []


def test_the_guest_knows_that_it_is_one():
    _, names = applied("host", lacking={"hypervisor", "tsc_deadline_timer"})
    assert {"hypervisor", "tsc_deadline_timer"} <= names


def test_no_deadline_timer_where_kvm_has_none():
    vcpu = FakeVcpu()
    CpuSetup(None, FakeSystem(lacking={"tsc_deadline_timer"}, tsc_deadline=0), 1).apply(vcpu, 0)
    assert "tsc_deadline_timer" not in present(vcpu.cpuid())


@pytest.mark.parametrize("text", ["host,-tsc_deadline_timer", "host,-hypervisor"])
def test_defaults_can_be_left_out(text):
    _, names = applied(text)
    assert text[6:] not in names


@pytest.mark.parametrize(
    ("text", "vendor", "there"),
    [("host", INTEL, True), ("host", AMD, False), ("host,+arch_capabilities", AMD, True)],
)
def test_arch_capabilities_are_intels_unless_asked_for(text, vendor, there):
    assert ("arch_capabilities" in applied(text, vendor=vendor)[1]) == there


@pytest.mark.parametrize(("khz", "leaf"), [(2_100_000, (2_100_000, APIC_KHZ)), (None, None), (0, None)])
def test_the_frequency_is_told_where_kvm_knows_it(khz, leaf):
    vcpu = FakeVcpu(khz)
    CpuSetup(None, FakeSystem(), 1).apply(vcpu, 0)
    table = {entry.function: entry for entry in vcpu.entries}
    timing = table.get(0x40000010)
    assert (timing and (timing.eax, timing.ebx)) == leaf
    assert table[0x40000000].eax == (0x40000010 if leaf else 0x40000001)


def test_a_template_can_be_taken_back_by_a_feature():
    template = b"""{"cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0x0", "flags": 0,
        "modifiers": [{"register": "ebx", "bitmap": "0b00000000000000000000000000000000"}]}]}"""
    vcpu = FakeVcpu()
    CpuSetup(CpuConfig(template=template, added=["bmi1"]), FakeSystem(), 1).apply(vcpu, 0)
    assert [entry.ebx for entry in vcpu.entries if (entry.function, entry.index) == (7, 0)] == [1 << 3]


def test_boot_msrs_keep_what_was_set():
    vcpu = FakeVcpu(msrs={IA32_MISC_ENABLE: 0x1800, IA32_MTRR_DEF_TYPE: 0})
    CpuSetup(None, FakeSystem(), 1).apply(vcpu, 0)
    assert vcpu.values == {IA32_MISC_ENABLE: 0x1801, IA32_MTRR_DEF_TYPE: MTRR_WRITE_BACK}


@pytest.mark.parametrize(("vendor", "value"), [(AMD, HWCR_TSC_FREQ_SEL | 8), (INTEL, 8)])
def test_only_amds_tsc_needs_its_rate_chosen(vendor, value):
    vcpu = FakeVcpu(msrs={HWCR: 8})
    CpuSetup(None, FakeSystem(vendor), 1).apply(vcpu, 0)
    assert vcpu.values == {HWCR: value}


def test_boot_msrs_that_kvm_refuses_are_no_matter():
    vcpu = FakeVcpu()
    CpuSetup(None, FakeSystem(), 1).apply(vcpu, 0)
    assert vcpu.values == {}


def test_the_hosts_processor_loads_no_tables_and_no_json():
    code = "import sys; before = set(sys.modules); import kvmpy.x86.cpu; print(*(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert {name for name in loaded if name.startswith("kvmpy.x86.cpu.")} == {
        "kvmpy.x86.cpu.setup", "kvmpy.x86.cpu.topology",
    }  # fmt: skip
    assert not loaded & {"json", "difflib", "kvmpy.config.cpu"}
