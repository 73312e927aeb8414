"""kvmpy.kvm's vCPUs: shared registers, signals, machine checks, registers by number; the real /dev/kvm."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest

from kvmpy.kvm import KvmError, Vcpu
from kvmpy.kvm.capabilities import (
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
    KVM_CAP_HYPERV_SYNIC,
    KVM_CAP_MCE,
    KVM_CAP_NESTED_STATE,
    KVM_CAP_ONE_REG,
    KVM_CAP_SYNC_REGS,
    KVM_CAP_SYS_HYPERV_CPUID,
    KVM_CAP_TSC_CONTROL,
    KVM_CAP_VCPU_ATTRIBUTES,
    KVM_CAP_X86_SMM,
)
from kvmpy.kvm.exits import KVM_EXIT_HLT, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IRQ_WINDOW_OPEN
from kvmpy.kvm.sync_regs import KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, SyncRegs
from kvmpy.kvm.vcpu_state import KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, msr_register
from kvmpy.testing.asm import assemble
from kvmpy.testing.guests import LOAD_ADDRESS
from kvmpy.testing.vcpus import load, refused

MSR_KERNEL_GS_BASE = 0xC0000102
ALL = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS


# --- shared registers


def synced(system, vcpu, mask=ALL):
    shared = vcpu.sync_regs(mask)
    if system.check_extension(KVM_CAP_SYNC_REGS) & mask != mask:
        refused(vcpu.run)
        pytest.skip("this KVM refuses to share registers, as it should say")
    return shared


def test_shared_registers_hold_before_the_first_run(system, memory, vcpu):
    load(memory, vcpu, "hlt")
    shared = synced(system, vcpu)
    assert isinstance(shared, SyncRegs)
    assert shared.regs.rip == LOAD_ADDRESS
    assert shared.sregs.cs.base == 0
    assert shared.valid == ALL
    assert shared.dirty == 0


def test_an_exit_leaves_its_registers_and_the_next_run_takes_them(system, memory, vcpu):
    load(memory, vcpu, "mov bx, 0x1234\nout 0x80, al\nmov ax, bx\nout 0x80, ax\nhlt")
    shared = synced(system, vcpu)
    assert vcpu.run() == KVM_EXIT_IO
    assert shared.regs.rbx == 0x1234
    shared.regs.rbx = 0x4142
    shared.mark_dirty(KVM_SYNC_X86_REGS)
    assert shared.dirty == KVM_SYNC_X86_REGS
    assert vcpu.run() == KVM_EXIT_IO
    assert bytes(vcpu.exit.io.data) == b"\x42\x41"
    assert shared.dirty == 0
    assert shared.regs.rip == vcpu.regs().rip


def test_what_is_changed_and_not_marked_does_not_count(system, memory, vcpu):
    load(memory, vcpu, "mov bx, 0x1234\nout 0x80, al\nmov ax, bx\nout 0x80, ax\nhlt")
    shared = synced(system, vcpu)
    vcpu.run()
    shared.regs.rbx = 0x4142
    vcpu.run()
    assert bytes(vcpu.exit.io.data) == b"\x34\x12"


def test_shared_segments_go_back_too(system, memory, vcpu):
    load(memory, vcpu, "out 0x80, al\nmov al, [0]\nout 0x80, al\nhlt")
    memory.write(0x3000, b"\x5a")
    shared = synced(system, vcpu)
    vcpu.run()
    shared.sregs.ds.base, shared.sregs.ds.selector = 0x3000, 0x300
    shared.mark_dirty(KVM_SYNC_X86_SREGS)
    vcpu.run()
    assert bytes(vcpu.exit.io.data) == b"\x5a"


def test_refresh_reads_what_an_ioctl_set(system, memory, vcpu):
    load(memory, vcpu, "hlt")
    shared = synced(system, vcpu)
    regs = vcpu.regs()
    regs.rax = 77
    vcpu.set_regs(regs)
    shared.refresh()
    assert shared.regs.rax == 77


def test_registers_that_were_not_asked_for_cannot_be_marked(system, vcpu):
    shared = synced(system, vcpu, KVM_SYNC_X86_REGS)
    with pytest.raises(ValueError, match="not asked for"):
        shared.mark_dirty(KVM_SYNC_X86_SREGS)


def test_bits_that_kvm_does_not_know_are_refused_before_a_run_fails(vcpu):
    with pytest.raises(ValueError, match="0x8"):
        vcpu.sync_regs(8)


def test_shared_registers_of_a_closed_vcpu_are_empty(system, vm):
    with vm.create_vcpu(1) as vcpu:
        shared = synced(system, vcpu)
    assert shared.regs.rip == 0
    assert shared.valid == 0


# --- signals, interrupts


def test_a_blocked_signal_waits_and_an_open_one_ends_the_run(memory, vcpu):
    load(memory, vcpu, "here: jmp here")
    got, reasons = [], []
    previous = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        # Blocked in this thread, open inside KVM_RUN only: it can come neither too early nor too late.
        vcpu.set_signal_mask(set(range(1, 65)) - {signal.SIGUSR1, signal.SIGKILL, signal.SIGSTOP})
        thread = threading.get_ident()
        threading.Thread(target=signal.pthread_kill, args=(thread, signal.SIGUSR1)).start()
        reasons.append(vcpu.run())
        assert signal.SIGUSR1 in signal.sigpending()
        vcpu.set_signal_mask(None)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        signal.signal(signal.SIGUSR1, previous)
    assert reasons == [KVM_EXIT_INTR]
    assert got == [signal.SIGUSR1]


def test_a_number_that_is_no_signals_is_refused(vcpu):
    with pytest.raises(ValueError, match="65"):
        vcpu.set_signal_mask([65])


def test_an_interrupt_window_opens_when_the_guest_allows_interrupts(memory, vcpu):
    load(memory, vcpu, "sti\nnop\nnop\nhere: jmp here")
    vcpu.request_interrupt_window = True
    assert vcpu.run() == KVM_EXIT_IRQ_WINDOW_OPEN
    assert vcpu.request_interrupt_window
    assert vcpu.interrupts_enabled
    assert vcpu.ready_for_interrupt
    memory.write(0x21 * 4, (0x2000).to_bytes(4, "little"))
    memory.write(0x2000, assemble("out 0x80, al\nhlt", bits=16, origin=0x2000))
    vcpu.request_interrupt_window = False
    vcpu.interrupt(0x21)
    assert vcpu.run() == KVM_EXIT_IO
    assert vcpu.exit.io.port == 0x80


def test_the_task_priority_is_that_of_the_last_exit(memory, vcpu):
    load(memory, vcpu, "hlt")
    vcpu.cr8 = 5
    assert vcpu.run() == KVM_EXIT_HLT
    assert vcpu.cr8 == 5
    assert vcpu.sregs().cr8 == 5
    assert vcpu.run_flags == 0


def test_an_smi_is_queued_where_kvm_has_smm(system, vcpu):
    if not system.check_extension(KVM_CAP_X86_SMM):
        return refused(vcpu.smi)
    vcpu.smi()
    assert vcpu.events().flags


# --- machine checks


def test_a_machine_check_needs_banks(system, vcpu):
    refused(vcpu.setup_mce, system.mce_capabilities())


def test_a_machine_check_reaches_its_bank(system, vm):
    assert system.check_extension(KVM_CAP_MCE) >= 4
    vm.create_irqchip()
    with vm.create_vcpu(0) as vcpu:
        vcpu.setup_mce(system.mce_capabilities() | 4)
        assert vcpu.msr(0x179) & 0xFF == 4
        # Valid and not uncorrected, so it is only logged.
        vcpu.inject_mce(2, 1 << 63 | 0x17, address=0x1234000, misc=0x86)
        assert vcpu.msr(0x409) == 1 << 63 | 0x17
        assert vcpu.msr(0x40A) == 0x1234000


def test_a_machine_check_in_a_bank_that_is_not_there_is_refused(system, vcpu):
    vcpu.setup_mce(system.mce_capabilities() | 4)
    refused(vcpu.inject_mce, 4, 1 << 63)


# --- registers by number, attributes, nested state, Hyper-V


def test_an_msr_goes_by_its_register_number(system, vcpu):
    register = msr_register(MSR_KERNEL_GS_BASE)
    if not system.check_extension(KVM_CAP_ONE_REG):
        refused(vcpu.register_ids)
        return refused(vcpu.one_reg, register)
    vcpu.set_one_reg(register, 0x1234567890)
    assert vcpu.one_reg(register) == 0x1234567890
    assert vcpu.msr(MSR_KERNEL_GS_BASE) == 0x1234567890
    assert all(isinstance(number, int) for number in vcpu.register_ids())


def test_a_register_number_that_means_nothing_is_refused(vcpu):
    refused(vcpu.one_reg, 5)
    refused(vcpu.set_one_reg, 5, 0)


def test_attributes_of_a_vcpu_are_told_and_others_are_not(system, vcpu):
    assert vcpu.has_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET) == bool(
        system.check_extension(KVM_CAP_VCPU_ATTRIBUTES)
    )
    assert not vcpu.has_attr(0x4242, 0)
    refused(vcpu.get_attr, 0x4242, 0)
    refused(vcpu.set_attr, 0x4242, 0, b"12345678")


def test_the_tsc_offset_is_taken(system, vcpu):
    if not system.check_extension(KVM_CAP_VCPU_ATTRIBUTES):
        return refused(vcpu.tsc_offset)
    before = vcpu.tsc_offset()
    vcpu.set_tsc_offset(-1000)
    # Some KVMs take it and keep their own.
    assert vcpu.tsc_offset() in (before, (1 << 64) - 1000)


def test_nested_state_goes_out_and_back_where_kvm_nests(system, vcpu):
    size = system.check_extension(KVM_CAP_NESTED_STATE)
    if not size:
        return refused(vcpu.nested_state, 0)
    state = vcpu.nested_state(size)
    vcpu.set_nested_state(state)
    assert vcpu.nested_state(size) == state


def test_nested_state_that_is_cut_short_never_reaches_kvm(vcpu):
    for state in (b"", bytes(127), bytes(4) + (4096).to_bytes(4, "little") + bytes(120)):
        with pytest.raises(ValueError, match="nested state"):
            vcpu.set_nested_state(state)


def test_nested_state_of_nothing_is_kvms_to_judge(system, vcpu):
    if not system.check_extension(KVM_CAP_NESTED_STATE):
        refused(vcpu.set_nested_state, bytes(4) + (128).to_bytes(4, "little") + bytes(120))


def test_hyperv_leaves_are_told_where_kvm_has_them(system, vcpu):
    if not system.check_extension(KVM_CAP_SYS_HYPERV_CPUID):
        refused(system.supported_hv_cpuid)
        return refused(vcpu.supported_hv_cpuid)
    assert {entry.function for entry in system.supported_hv_cpuid()} >= {0x40000000, 0x40000001}


def test_a_vcpus_capability_is_switched_on_or_refused(system, vcpu):
    if system.check_extension(KVM_CAP_ENFORCE_PV_FEATURE_CPUID):
        vcpu.enable_cap(KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1)
    if not system.check_extension(KVM_CAP_HYPERV_SYNIC):
        refused(vcpu.enable_cap, KVM_CAP_HYPERV_SYNIC)


def test_task_priority_reports_are_switched(vm):
    vm.create_irqchip()
    with vm.create_vcpu(0) as vcpu:
        vcpu.report_tpr_accesses(True)
        vcpu.report_tpr_accesses(False)


def test_a_task_priority_page_that_is_not_ram_is_refused(vm):
    vm.create_irqchip()
    with vm.create_vcpu(0) as vcpu:
        refused(vcpu.set_vapic_address, 0x1000)


def test_a_tsc_that_the_processor_cannot_scale_to_is_refused(system, vcpu):
    if not system.check_extension(KVM_CAP_TSC_CONTROL):
        refused(vcpu.set_tsc_khz, vcpu.tsc_khz() // 2)


def test_a_closed_vcpu_answers_with_an_error(vm):
    with vm.create_vcpu(1) as vcpu:
        pass
    for call in (vcpu.run, vcpu.regs, vcpu.smi, vcpu.register_ids, vcpu.mp_state):
        with pytest.raises(KvmError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_nothing_stays_open_when_a_vcpu_shared_its_registers(system, vm):
    before = len(os.listdir("/proc/self/fd"))
    vcpu: Vcpu = vm.create_vcpu(2)
    vcpu.sync_regs(0)
    vcpu.close()
    assert len(os.listdir("/proc/self/fd")) == before
