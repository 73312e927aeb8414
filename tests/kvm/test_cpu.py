"""kvmpy.x86.cpu on the real KVM: what a guest sees is what was asked for, or what KVM was seen to force."""

from __future__ import annotations

import json
import mmap

import pytest

from kvmpy.config.cpu import CpuConfig, parse_cpu
from kvmpy.errors import ConfigError
from kvmpy.kvm.exits import KVM_EXIT_HLT, KVM_EXIT_IO, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR
from kvmpy.testing.asm import assemble
from kvmpy.x86.cpu import CpuSetup
from kvmpy.x86.cpu.features import PLACES, present
from kvmpy.x86.cpu.msrs import FAULT, ZERO, MsrPolicy
from kvmpy.x86.cpu.setup import IA32_MISC_ENABLE, IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK

PORT = 0x42
UNKNOWN_MSR = 0xDEAD

# Asks CPUID of EAX, ECX and says the four registers to a port, then waits for the next question.
CPUID = """
next:
    cpuid
    out PORT, eax
    mov eax, ebx
    out PORT, eax
    mov eax, ecx
    out PORT, eax
    mov eax, edx
    out PORT, eax
    hlt
    jmp next
"""


@pytest.fixture
def run(vm):
    """Puts code into memory and gives a function that runs it on a vCPU until it halts, with the words it said."""
    memory = mmap.mmap(-1, 1 << 16)
    vm.set_memory_region(0, 0, memory)

    def start(vcpu, code, rax=0, rcx=0, on_exit=None):
        memory[0x1000 : 0x1000 + len(code)] = code
        sregs = vcpu.sregs()
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set_sregs(sregs)
        regs = vcpu.regs()
        regs.rip, regs.rax, regs.rcx, regs.rflags = 0x1000, rax, rcx, 2
        vcpu.set_regs(regs)
        said = []
        while (reason := vcpu.run()) != KVM_EXIT_HLT:
            if reason == KVM_EXIT_IO:
                said.append(int.from_bytes(vcpu.exit.io.data, "little"))
            elif on_exit is None:
                pytest.fail(f"the guest left for {reason}")
            else:
                on_exit(reason)
        return said

    return start


def ask(run, vcpu, leaf, subleaf=0):
    return tuple(run(vcpu, assemble(CPUID, bits=16, origin=0x1000, PORT=PORT), leaf, subleaf))


def registers(entry):
    return entry.eax, entry.ebx, entry.ecx, entry.edx


@pytest.mark.parametrize("vcpus", [1, 2, 3])
def test_each_vcpu_finds_its_place(system, vm, run, vcpus):
    setup = CpuSetup(None, system, vcpus)
    for apic_id in range(vcpus):
        with vm.create_vcpu(apic_id) as vcpu:
            setup.apply(vcpu, apic_id)
            assert ask(run, vcpu, 0xB, 0) == (0, 1, 0x100, apic_id)
            assert ask(run, vcpu, 0xB, 1) == ((vcpus - 1).bit_length(), vcpus, 0x201, apic_id)
            assert ask(run, vcpu, 0x1)[1] >> 16 == apic_id << 8 | vcpus


def test_the_topology_leaf_ends_after_the_cores(system, vm, run):
    with vm.create_vcpu(1) as vcpu:
        CpuSetup(None, system, 2).apply(vcpu, 1)
        eax, ebx, ecx, edx = ask(run, vcpu, 0xB, 2)
    assert (eax, ebx, ecx >> 8, edx) == (0, 0, 0, 1)


def test_the_guest_sees_what_is_read_back(system, vm, run):
    with vm.create_vcpu(0) as vcpu:
        CpuSetup(None, system, 2).apply(vcpu, 0)
        for entry in vcpu.cpuid():
            if entry.function in (0x1, 0x7, 0x40000001, 0x80000001, 0x80000008, 0x8000001E):
                assert ask(run, vcpu, entry.function, entry.index) == registers(entry)


def test_the_hypervisor_signs_and_tells_the_frequency(system, vm, run):
    with vm.create_vcpu(0) as vcpu:
        CpuSetup(None, system, 1).apply(vcpu, 0)
        leaves, *signature = ask(run, vcpu, 0x40000000)
        khz = vcpu.tsc_khz()
        timing = ask(run, vcpu, 0x40000010)
    assert b"".join(word.to_bytes(4, "little") for word in signature) == b"KVMKVMKVM\0\0\0"
    assert (leaves, timing) == (0x40000010, (khz, 1_000_000, 0, 0))


def test_kvmclock_is_there_unless_it_is_left_out(system, vm, run):
    seen = []
    for number, text in enumerate(("host", "host,-kvmclock")):
        with vm.create_vcpu(number) as vcpu:
            CpuSetup(parse_cpu(text), system, 1).apply(vcpu, 0)
            seen.append(ask(run, vcpu, 0x40000001)[0] & 0b1001)
    assert seen == [0b1001, 0]


def test_forced_is_all_that_differs(system, vm):
    with vm.create_vcpu(0) as vcpu:
        setup = CpuSetup(None, system, 1)
        setup.apply(vcpu, 0)
        asked, got = present(setup.entries(0)), present(vcpu.cpuid())
        forced = setup.forced(vcpu, 0)
    follows = {"osxsave", "ospke", "apic"}
    names = {name for name in forced if name[1:] in PLACES}
    assert names == {f"+{n}" for n in got - asked - follows} | {f"-{n}" for n in asked - got - follows}


def test_a_feature_that_is_left_out_is_gone_or_told(system, vm):
    with vm.create_vcpu(0) as vcpu:
        setup = CpuSetup(parse_cpu("host,-cx16,-avx2"), system, 1)
        setup.apply(vcpu, 0)
        names = present(vcpu.cpuid())
    told = {name for note in setup.notes for name in note.partition("clearcpuid=")[2].partition(" ")[0].split(",")}
    assert told & {"cx16", "avx2"} == names & {"cx16", "avx2"}


def test_a_feature_that_kvm_has_is_given(system, vm):
    with vm.create_vcpu(0) as vcpu:
        setup = CpuSetup(parse_cpu("x86-64-v1,+cx16"), system, 1)
        setup.apply(vcpu, 0)
        assert "cx16" in present(vcpu.cpuid())


def test_a_feature_that_nobody_has_is_refused(system, vm):
    with vm.create_vcpu(0) as vcpu:
        setup = CpuSetup(parse_cpu("host,+ia64,+cmov"), system, 1)
        with pytest.raises(ConfigError, match=r"cpu: this host's KVM does not give its guests ia64$"):
            setup.apply(vcpu, 0)


def test_a_level_is_given_or_what_lacks_is_named(system, vm):
    with vm.create_vcpu(0) as vcpu:
        setup = CpuSetup(CpuConfig("x86-64-v4"), system, 1)
        try:
            setup.apply(vcpu, 0)
            lacking = set()
        except ConfigError as error:
            lacking = set(str(error).partition("guests ")[2].split(", "))
        assert setup._selection.on - present(vcpu.cpuid()) == lacking


def template(**parts):
    return CpuConfig(template=json.dumps(parts).encode())


def test_a_template_changes_what_the_guest_reads(system, vm, run):
    brand = {"leaf": "0x80000002", "subleaf": "0x0", "flags": 0, "modifiers": [
        {"register": "eax", "bitmap": f"0b{int.from_bytes(b'kvmp', 'little'):032b}"}]}  # fmt: skip
    with vm.create_vcpu(0) as vcpu:
        CpuSetup(template(cpuid_modifiers=[brand]), system, 1).apply(vcpu, 0)
        assert ask(run, vcpu, 0x80000002)[0].to_bytes(4, "little") == b"kvmp"


def test_the_topology_wins_over_a_template(system, vm, run):
    wrong = {"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [{"register": "ebx", "bitmap": "0b" + "1" * 32}]}
    with vm.create_vcpu(0) as vcpu:
        CpuSetup(template(cpuid_modifiers=[wrong]), system, 2).apply(vcpu, 0)
        assert ask(run, vcpu, 0x1)[1] >> 16 == 2


def test_a_template_changes_an_msr(system, vm):
    with vm.create_vcpu(0) as vcpu:
        msrs = [{"addr": "0x1a0", "bitmap": "0b1x"}]
        CpuSetup(template(msr_modifiers=msrs), system, 1).apply(vcpu, 0)
        assert vcpu.msr(IA32_MISC_ENABLE) & 0b11 == 0b11


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ({"kvm_capabilities": ["1000000"]}, "cpu.kvm_capabilities"),
        (
            {"cpuid_modifiers": [{"leaf": "0x123456", "subleaf": "0x0", "flags": 0, "modifiers": []}]},
            "cpu.cpuid_modifiers[0]",
        ),
        ({"msr_modifiers": [{"addr": "0xdead", "bitmap": "0b1"}]}, "cpu.msr_modifiers[0]"),
    ],
)
def test_a_template_for_another_host_is_refused(system, vm, parts, path):
    with vm.create_vcpu(0) as vcpu, pytest.raises(ConfigError) as caught:
        CpuSetup(template(**parts), system, 1).apply(vcpu, 0)
    assert caught.value.path == path


def test_a_capability_that_is_there_or_need_not_be_is_no_matter(system, vm):
    CpuSetup(template(kvm_capabilities=["0", "!1000000"]), system, 1)


def test_boot_msrs_are_set(system, vm):
    with vm.create_vcpu(0) as vcpu:
        CpuSetup(None, system, 1).apply(vcpu, 0)
        assert vcpu.msr(IA32_MISC_ENABLE) & 1
        assert vcpu.msr(IA32_MTRR_DEF_TYPE) == MTRR_WRITE_BACK


def test_boot_msrs_are_left_to_firmware(system, vm):
    with vm.create_vcpu(0) as vcpu:
        CpuSetup(None, system, 1).apply(vcpu, 0, boot_msrs=False)
        assert vcpu.msr(IA32_MTRR_DEF_TYPE) == 0


def test_unknown_msrs_read_as_zero_and_are_counted(system, vm, run):
    policy = MsrPolicy(ZERO)
    assert policy.install(vm)
    with vm.create_vcpu(0) as vcpu:
        CpuSetup(None, system, 1).apply(vcpu, 0)

        def answer(reason):
            assert reason in (KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR)
            (policy.read if reason == KVM_EXIT_X86_RDMSR else policy.write)(vcpu.exit.msr)

        code = assemble("rdmsr\nout PORT, eax\nwrmsr\nhlt", bits=16, origin=0x1000, PORT=PORT)
        said = run(vcpu, code, rax=7, rcx=UNKNOWN_MSR, on_exit=answer)
    assert (said, policy.reads, policy.writes) == ([0], {UNKNOWN_MSR: 1}, {UNKNOWN_MSR: 1})


def test_unknown_msrs_fault_where_they_shall(system, vm, run):
    policy = MsrPolicy(FAULT)
    assert policy.install(vm)
    with vm.create_vcpu(0) as vcpu:
        CpuSetup(None, system, 1).apply(vcpu, 0)
        # Vector 13 of the real-mode table, made by the guest itself.
        code = assemble(
            """
                mov word [13 * 4], fault
                mov word [13 * 4 + 2], 0
                mov sp, 0x800
                rdmsr
                hlt
            fault:
                mov al, 13
                out PORT, al
                hlt
            """,
            bits=16,
            origin=0x1000,
            PORT=PORT,
        )
        said = run(vcpu, code, rcx=UNKNOWN_MSR, on_exit=lambda _reason: policy.read(vcpu.exit.msr))
    assert (said, policy.reads) == ([13], {UNKNOWN_MSR: 1})
