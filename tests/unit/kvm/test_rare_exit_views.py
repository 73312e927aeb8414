"""The views of exits that few hosts make: what they read from a `struct kvm_run` that is filled by hand."""

from __future__ import annotations

import pytest
from kvmpy._kvm import ffi, lib

from kvmpy.kvm.exits import Exit
from kvmpy.kvm.rare_exit_views import KVM_EXIT_HYPERV_HCALL, KVM_MEMORY_EXIT_FLAG_PRIVATE


@pytest.fixture
def run():
    return ffi.new("struct kvm_run *")


@pytest.fixture
def exit_(run):
    views = Exit()
    views.attach(run, memoryview(ffi.buffer(run)))
    return views


def test_a_hypercall_has_number_arguments_and_an_answer(run, exit_):
    run.exit_reason = lib.KVM_EXIT_HYPERCALL
    run.hypercall.nr, run.hypercall.longmode = 12, 1
    for index in range(6):
        run.hypercall.args[index] = index + 1
    call = exit_.hypercall
    assert (exit_.name, call.number, call.arguments, call.is_long_mode) == ("hypercall", 12, (1, 2, 3, 4, 5, 6), True)
    call.result = -1
    assert run.hypercall.ret == call.result == (1 << 64) - 1


def test_a_memory_fault_tells_where_and_how(run, exit_):
    words = ffi.cast("uint64_t *", ffi.addressof(run, "padding"))
    words[0], words[1], words[2] = KVM_MEMORY_EXIT_FLAG_PRIVATE, 0x123000, 0x1000
    fault = exit_.memory_fault
    assert (fault.flags, fault.address, fault.size) == (KVM_MEMORY_EXIT_FLAG_PRIVATE, 0x123000, 0x1000)


def test_a_task_priority_access_tells_where_and_which_way(run, exit_):
    run.tpr_access.rip, run.tpr_access.is_write = 0x7C00, 1
    assert (exit_.tpr_access.rip, exit_.tpr_access.is_write) == (0x7C00, True)


def test_a_hyperv_call_is_read_and_answered(run, exit_):
    run.hyperv.type = KVM_EXIT_HYPERV_HCALL
    run.hyperv.u.hcall.input, run.hyperv.u.hcall.params[1] = 0x5C, 9
    assert (exit_.hyperv.type, exit_.hyperv.hcall.input, exit_.hyperv.hcall.params[1]) == (2, 0x5C, 9)
    exit_.hyperv.hcall.result = 3
    assert run.hyperv.u.hcall.result == 3
    run.hyperv.u.synic.msr = 0x40000080
    assert exit_.hyperv.synic.msr == 0x40000080
    run.hyperv.u.syndbg.status = 5
    assert exit_.hyperv.syndbg.status == 5


def test_the_other_views_read_their_own_members(run, exit_):
    run.notify.flags = 1
    assert exit_.notify.context_is_lost
    run.eoi.vector = 0x41
    assert exit_.ioapic_eoi.vector == 0x41
    run.hw.hardware_exit_reason = 0x30
    assert exit_.unknown.hardware_reason == 0x30
    run.fail_entry.cpu = 7
    assert exit_.fail_entry.cpu == 7


def test_a_system_events_data_ends_where_kvm_says_and_never_past_16_words(run, exit_):
    run.system_event.ndata = 2
    run.system_event.data[0], run.system_event.data[1] = 5, 6
    assert exit_.system_event.data == (5, 6)
    run.system_event.ndata = 0xFFFFFFFF
    assert len(exit_.system_event.data) == 16
