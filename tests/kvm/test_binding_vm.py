"""kvmpy.kvm's VMs and the system: interrupts, filters, attributes, rarer exits; the real /dev/kvm."""

from __future__ import annotations

import errno
import os
import select

import pytest

from kvmpy.kvm import MsrRange
from kvmpy.kvm.capabilities import (
    KVM_CAP_EXIT_HYPERCALL,
    KVM_CAP_GET_MSR_FEATURES,
    KVM_CAP_HYPERV_EVENTFD,
    KVM_CAP_MCE,
    KVM_CAP_PMU_EVENT_FILTER,
    KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_SYS_ATTRIBUTES,
    KVM_CAP_VM_ATTRIBUTES,
)
from kvmpy.kvm.device import KVM_DEV_TYPE_VFIO
from kvmpy.kvm.exits import KVM_EXIT_IOAPIC_EOI
from kvmpy.kvm.vm import KVM_MSR_FILTER_READ, KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY
from kvmpy.testing.asm import assemble
from kvmpy.testing.vcpus import NOT_THERE, load, refused

KVM_HC_MAP_GPA_RANGE = 12


# --- interrupts


def test_a_split_irqchip_tells_the_end_of_an_interrupt(system, vm, memory):
    if not system.check_extension(KVM_CAP_SPLIT_IRQCHIP):
        return refused(vm.create_split_irqchip)
    vm.create_split_irqchip(24)
    vector = 0x41
    level = 1 << 15
    vm.set_gsi_routing([], [(4, 0xFEE00000, level | vector)])
    with vm.create_vcpu(0) as vcpu:
        vcpu.set_cpuid(system.supported_cpuid())
        memory.write(vector * 4, (0x2000).to_bytes(4, "little"))
        # FS reaches the local APIC: its register for the end of an interrupt.
        memory.write(0x2000, assemble("mov dword [fs:0xb0], 0\nhere: out 0x81, al\njmp here", bits=16, origin=0x2000))
        load(memory, vcpu, "sti\nhere: out 0x80, al\njmp here")
        sregs = vcpu.sregs()
        sregs.fs.base, sregs.fs.limit = 0xFEE00000, 0xFFFF
        vcpu.set_sregs(sregs)
        lapic = bytearray(vcpu.lapic())
        lapic[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")  # on, with 0xff for spurious interrupts
        vcpu.set_lapic(bytes(lapic))
        assert vm.signal_msi(0xFEE00000, level | vector)
        reasons = []
        while len(reasons) < 10 and KVM_EXIT_IOAPIC_EOI not in reasons:
            reasons.append(vcpu.run())
        assert reasons[-1] == KVM_EXIT_IOAPIC_EOI
        assert vcpu.exit.ioapic_eoi.vector == vector
        assert vcpu.exit.name == "ioapic_eoi"


def test_a_second_irqchip_is_refused(vm):
    vm.create_irqchip()
    refused(vm.create_split_irqchip, numbers=(errno.EEXIST, errno.EINVAL))


def test_the_status_of_a_line_says_whether_the_interrupt_got_through(vm):
    vm.create_irqchip()
    with vm.create_vcpu(0):
        assert vm.irq_line_status(4, True) >= 0
        vm.irq_line_status(4, False)


def test_the_pits_late_ticks_are_switched_where_there_is_a_pit(vm):
    vm.create_irqchip()
    refused(vm.set_pit_reinject, False)
    vm.create_pit()
    vm.set_pit_reinject(False)
    vm.set_pit_reinject(True)


def test_a_hyperv_connection_is_bound_where_kvm_has_them(system, vm):
    fd = os.eventfd(0)
    if system.check_extension(KVM_CAP_HYPERV_EVENTFD):
        vm.hyperv_eventfd(1, fd)
        vm.hyperv_eventfd(1, fd, deassign=True)
    else:
        refused(vm.hyperv_eventfd, 1, fd)
    os.close(fd)


def test_an_irqfd_raises_its_line_and_the_guests_end_of_interrupt_comes_back(vm, memory):
    vm.create_irqchip()
    fd, resample = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    with vm.create_vcpu(0):
        vm.irqfd(fd, 4, resample_fd=resample)
        os.eventfd_write(fd, 1)
        # KVM took it: its fd is empty again.
        assert not select.select([fd], [], [], 0)[0]
        vm.irqfd(fd, 4, deassign=True)
    os.close(fd)
    os.close(resample)


# --- hypercalls, filters, time


def test_a_hypercall_is_asked_for(system, vm):
    offered = system.check_extension(KVM_CAP_EXIT_HYPERCALL)
    if not offered:
        return refused(vm.enable_cap, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)
    vm.enable_cap(KVM_CAP_EXIT_HYPERCALL, offered)


def test_a_hypercall_that_kvm_cannot_leave_to_us_is_refused(vm):
    refused(vm.enable_cap, KVM_CAP_EXIT_HYPERCALL, 1 << 63)


def test_performance_events_are_filtered(system, vm):
    if not system.check_extension(KVM_CAP_PMU_EVENT_FILTER):
        return refused(vm.set_pmu_event_filter, [0x3C])
    vm.set_pmu_event_filter([0x3C, 0xC0])
    vm.set_pmu_event_filter([], KVM_PMU_EVENT_DENY)
    vm.set_pmu_event_filter([0x3C], KVM_PMU_EVENT_ALLOW, fixed_counters=3)


def test_a_filter_that_means_nothing_is_refused(vm):
    refused(vm.set_pmu_event_filter, [0x3C], 7)


def test_more_msr_ranges_than_kvm_has_are_refused_and_not_forgotten(vm):
    ranges = [MsrRange(0x1000 + i, 1, [0x1000 + i], KVM_MSR_FILTER_READ) for i in range(17)]
    with pytest.raises(ValueError, match="at most 16 ranges, not 17"):
        vm.set_msr_filter(ranges)


def test_the_tsc_of_later_vcpus_is_that_of_the_vm(vm):
    vm.set_tsc_khz(vm.tsc_khz())
    with vm.create_vcpu(0) as vcpu:
        assert vcpu.tsc_khz() == vm.tsc_khz() > 0


# --- attributes, devices, the system


def test_attributes_of_the_system_and_of_a_vm(system, vm):
    # Group 0, attribute 0 of the system: the XSAVE features that a guest can have; x87 and SSE are always among them.
    if system.check_extension(KVM_CAP_SYS_ATTRIBUTES):
        assert system.has_attr(0, 0)
        assert int.from_bytes(system.get_attr(0, 0), "little") & 3 == 3
    else:
        assert not system.has_attr(0, 0)
    assert not system.has_attr(0x4242, 0)
    if not system.check_extension(KVM_CAP_VM_ATTRIBUTES):
        refused(vm.get_attr, 0, 0)
    assert not vm.has_attr(0x4242, 0)


def test_a_device_is_tried_before_it_is_made(vm):
    assert not vm.can_create_device(9999)
    refused(vm.create_device, 9999, numbers=(errno.ENODEV,))
    if vm.can_create_device(KVM_DEV_TYPE_VFIO):
        with vm.create_device(KVM_DEV_TYPE_VFIO) as device:
            assert device.fd >= 0
            assert not device.has_attr(0x4242, 0)
            none = (*NOT_THERE, errno.EPERM)
            refused(device.get_attr, 0x4242, 0, numbers=none)
            refused(device.set_attr, 0x4242, 0, bytes(8), numbers=none)


def test_feature_msrs_are_read_without_a_vcpu(system):
    if not system.check_extension(KVM_CAP_GET_MSR_FEATURES):
        return refused(system.feature_msrs)
    features = system.feature_msrs()
    assert features
    assert set(features) <= set(system.msr_feature_indices())


def test_machine_checks_of_this_host(system):
    assert system.mce_capabilities() & 0xFF == 0
    assert system.check_extension(KVM_CAP_MCE) > 0


def test_a_type_of_vm_that_does_not_exist_is_refused(system):
    refused(system.create_vm, 31)


def test_a_closed_vm_answers_with_an_error(system):
    with system.create_vm() as vm:
        pass
    vm.close()
    for call in (vm.clock, vm.create_irqchip, vm.reset_dirty_rings):
        refused(call, numbers=(errno.EBADF,))
