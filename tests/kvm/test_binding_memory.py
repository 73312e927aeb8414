"""kvmpy.kvm's memory: dirty logs and rings, private memory; the real /dev/kvm, with and without what it lacks."""

from __future__ import annotations

import mmap
import os

import pytest

from kvmpy.errors import StateError
from kvmpy.kvm import KvmError
from kvmpy.kvm.capabilities import (
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_GUEST_MEMFD,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_MEMORY_ATTRIBUTES,
    KVM_CAP_PRE_FAULT_MEMORY,
    KVM_CAP_USER_MEMORY2,
    KVM_CAP_VM_TYPES,
)
from kvmpy.kvm.exits import KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_HLT
from kvmpy.kvm.system import KVM_X86_SW_PROTECTED_VM
from kvmpy.kvm.vm_memory import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEMORY_ATTRIBUTE_PRIVATE
from kvmpy.memory import GuestMemory
from kvmpy.testing.vcpus import load, refused
from kvmpy.units import MIB

ENTRIES = 1024


def pages(bitmap):
    bits = int.from_bytes(bitmap, "little")
    return {page for page in range(bits.bit_length()) if bits >> page & 1}


def log_by_hand(vm, memory):
    vm.protect_dirty_log_by_hand()
    vm.set_memory_region(0, 0, memory.regions[0].buffer, KVM_MEM_LOG_DIRTY_PAGES)


def test_dirty_bits_stay_until_they_are_cleared_by_hand(system, vm, memory):
    if not system.check_extension(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2):
        return refused(vm.protect_dirty_log_by_hand)
    log_by_hand(vm, memory)
    with vm.create_vcpu(0) as vcpu:
        load(memory, vcpu, "mov byte [0x5678], 1\nmov byte [0x7000], 1\nhlt")
        assert vcpu.run() == KVM_EXIT_HLT
    assert pages(vm.dirty_log(0, MIB)) == pages(vm.dirty_log(0, MIB)) == {5, 7}
    vm.clear_dirty_log(0, 0, 64, bytes([1 << 5, *bytes(7)]))
    assert pages(vm.dirty_log(0, MIB)) == {7}


def test_clearing_checks_the_bitmaps_length_before_kvm_reads_it(vm):
    with pytest.raises(ValueError, match="too short for 64 pages"):
        vm.clear_dirty_log(0, 0, 64, bytes(7))


def test_clearing_a_slot_that_does_not_exist_is_refused(vm, memory):
    with pytest.raises(KvmError, match="KVM_CLEAR_DIRTY_LOG"):
        vm.clear_dirty_log(5, 0, 64, bytes(8))


def ring_vm(vm, memory):
    vm.enable_dirty_rings(ENTRIES)
    vm.set_memory_region(0, 0, memory.regions[0].buffer, KVM_MEM_LOG_DIRTY_PAGES)


def test_the_dirty_ring_tells_each_page_once_until_it_is_reset(system, vm, memory):
    if not system.check_extension(KVM_CAP_DIRTY_LOG_RING_ACQ_REL):
        return refused(vm.enable_dirty_rings, ENTRIES)
    ring_vm(vm, memory)
    with vm.create_vcpu(0) as vcpu, vcpu.dirty_ring() as ring:
        load(memory, vcpu, "again: mov byte [0x5678], 1\nmov byte [0x7000], 1\nmov byte [0x5000], 1\nhlt\njmp again")
        assert vcpu.run() == KVM_EXIT_HLT
        assert {(0, 5), (0, 7)} <= set(ring.take())
        assert ring.take() == []
        assert vm.reset_dirty_rings() >= 2
        assert vcpu.run() == KVM_EXIT_HLT
        assert {(0, 5), (0, 7)} <= set(ring.take())


def test_a_ring_that_runs_full_ends_the_run_and_goes_round(system, vm):
    if not system.check_extension(KVM_CAP_DIRTY_LOG_RING_ACQ_REL):
        return refused(vm.enable_dirty_rings, ENTRIES)
    # Real mode reaches 272 pages at once, so it writes the same ones again after each reset.
    with GuestMemory(MIB) as memory:
        ring_vm(vm, memory)
        with vm.create_vcpu(0) as vcpu, vcpu.dirty_ring() as ring:
            source = "mov ax, 0x1000\nround: mov ds, ax\nmov byte [0], 1\nadd ax, 0x100\ncmp ax, 0xf000\njne round\nhlt"
            seen = []
            for _ in range(6):
                load(memory, vcpu, source)
                while vcpu.run() == KVM_EXIT_DIRTY_RING_FULL:
                    seen += ring.take()
                    vm.reset_dirty_rings()
                seen += ring.take()
                vm.reset_dirty_rings()
    wanted = {(0, page) for page in range(0x10, 0xF0)}
    assert wanted <= set(seen)
    assert len(seen) >= 6 * len(wanted) > ENTRIES


def test_a_ring_that_was_not_asked_for_is_an_error_and_not_a_crash(vm):
    with vm.create_vcpu(0) as vcpu, pytest.raises(StateError, match="enable_dirty_rings"):
        vcpu.dirty_ring()


def test_a_ring_that_is_closed_has_nothing(system, vm):
    if not system.check_extension(KVM_CAP_DIRTY_LOG_RING_ACQ_REL):
        return refused(vm.enable_dirty_rings, ENTRIES)
    vm.enable_dirty_rings(ENTRIES)
    with vm.create_vcpu(0) as vcpu:
        ring = vcpu.dirty_ring()
        ring.close()
        ring.close()
        assert ring.take() == []


def test_rings_of_an_odd_size_are_refused(vm):
    refused(vm.enable_dirty_rings, 3)


def test_guest_memory_of_the_new_kind_runs_a_guest(vm):
    with GuestMemory(MIB) as memory:
        region = (0, 0, memory.regions[0].buffer, 0, 0, 0)
        if not vm.check_extension(KVM_CAP_USER_MEMORY2):
            return refused(vm.set_private_memory_region, *region)
        vm.set_private_memory_region(*region)
        with vm.create_vcpu(0) as vcpu:
            load(memory, vcpu, "mov byte [0x5678], 7\nhlt")
            assert vcpu.run() == KVM_EXIT_HLT
        assert memory.read(0x5678, 1) == b"\x07"
        vm.remove_memory_region(0)


def test_a_guest_memfd_is_an_fd_of_its_own(vm):
    if not vm.check_extension(KVM_CAP_GUEST_MEMFD):
        return refused(vm.create_guest_memfd, MIB)
    fd = vm.create_guest_memfd(MIB)
    assert os.fstat(fd).st_size == MIB
    os.close(fd)


def test_a_guest_memfd_of_part_of_a_page_is_refused(vm):
    refused(vm.create_guest_memfd, 1)


def test_pages_become_private_where_kvm_can(vm):
    private = (0, mmap.PAGESIZE, KVM_MEMORY_ATTRIBUTE_PRIVATE)
    if not vm.check_extension(KVM_CAP_MEMORY_ATTRIBUTES):
        return refused(vm.set_memory_attributes, *private)
    vm.set_memory_attributes(*private)


def test_a_vm_of_another_type_is_made_where_kvm_can(system):
    if not system.check_extension(KVM_CAP_VM_TYPES) >> KVM_X86_SW_PROTECTED_VM & 1:
        return refused(system.create_vm, KVM_X86_SW_PROTECTED_VM)
    system.create_vm(KVM_X86_SW_PROTECTED_VM).close()


def test_memory_encryption_is_refused_for_a_plain_vm(vm):
    buffer = mmap.mmap(-1, mmap.PAGESIZE)
    refused(vm.encrypt_op, bytearray(64))
    refused(vm.register_encrypted_region, buffer)
    refused(vm.unregister_encrypted_region, buffer)
    buffer.close()


def test_an_encryption_command_that_kvm_could_not_answer_in_is_refused(vm):
    with pytest.raises((TypeError, BufferError)):
        vm.encrypt_op(bytes(64))


def test_pages_are_mapped_ahead_where_kvm_can(vm, memory):
    with vm.create_vcpu(0) as vcpu:
        if not vm.check_extension(KVM_CAP_PRE_FAULT_MEMORY):
            return refused(vcpu.pre_fault, 0, MIB)
        assert vcpu.pre_fault(0, MIB) == (MIB, 0)
