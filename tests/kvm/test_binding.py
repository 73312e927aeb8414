"""kvmpy.kvm: the real /dev/kvm through its classes."""

from __future__ import annotations

import mmap
import os
import threading

import pytest

from kvmpy.kvm import KvmError, MsrRange, System
from kvmpy.kvm.capabilities import (
    KVM_CAP_COALESCED_MMIO,
    KVM_CAP_COALESCED_PIO,
    KVM_CAP_USER_MEMORY,
    KVM_CAP_X86_USER_SPACE_MSR,
)
from kvmpy.kvm.exits import KVM_EXIT_HLT, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_X86_RDMSR
from kvmpy.kvm.stats import read_stats
from kvmpy.kvm.structs import REGISTER_NAMES
from kvmpy.kvm.vm import KVM_IRQCHIP_IOAPIC, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_FILTER_READ
from kvmpy.memory import GuestMemory
from kvmpy.testing.vcpus import load
from kvmpy.units import MIB

MSR_IA32_TSC_AUX = 0xC0000103


def test_kvm_has_what_every_machine_needs(system):
    assert system.check_extension(KVM_CAP_USER_MEMORY)
    assert system.vcpu_mmap_size() >= mmap.PAGESIZE


def test_a_missing_device_says_how_to_get_it(tmp_path):
    with pytest.raises(KvmError, match="modprobe") as caught:
        System(str(tmp_path / "kvm"))
    assert caught.value.errno == 2


def test_a_forbidden_device_names_the_group(tmp_path):
    if os.geteuid() == 0:
        pid = os.fork()
        if pid == 0:  # Root may open anything; nobody may not.
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            try:
                System("/proc/1/mem")
            except KvmError as error:
                os._exit(0 if "usermod -aG kvm" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    else:
        path = tmp_path / "kvm"
        path.touch(0o000)
        with pytest.raises(KvmError, match="usermod -aG kvm"):
            System(str(path))


def test_a_file_that_is_not_kvm_is_refused(tmp_path):
    (tmp_path / "kvm").touch()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError, match="KVM_GET_API_VERSION"):
        System(str(tmp_path / "kvm"))
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_refusal_names_ioctl_and_errno(vm):
    with pytest.raises(KvmError, match="KVM_CREATE_VCPU") as caught:
        vm.create_vcpu(1 << 20)
    assert caught.value.call == "KVM_CREATE_VCPU"
    assert isinstance(caught.value, OSError)


def test_a_port_write_shows_port_size_and_data(memory, vcpu):
    load(memory, vcpu, "mov dx, 0x3f8\nmov ax, 0x4241\nout dx, ax\nhlt")
    assert vcpu.run() == KVM_EXIT_IO
    io = vcpu.exit.io
    assert (io.port, io.size, io.count, io.is_write, bytes(io.data)) == (0x3F8, 2, 1, True, b"AB")
    assert vcpu.exit.name == "io"
    assert vcpu.run() == KVM_EXIT_HLT


def test_the_answer_to_a_port_read_reaches_the_guest(memory, vcpu):
    load(memory, vcpu, "in al, 0x60\nout 0x80, al\nhlt")
    assert vcpu.run() == KVM_EXIT_IO
    assert not vcpu.exit.io.is_write
    vcpu.exit.io.data[:] = b"\x7e"
    assert vcpu.run() == KVM_EXIT_IO
    assert bytes(vcpu.exit.io.data) == b"\x7e"


def test_mmio_both_ways(memory, vcpu):
    # The segment that reaches past the machine's 1 MiB.
    load(memory, vcpu, "mov ax, 0xffff\nmov ds, ax\nmov al, [0x20]\nmov [0x21], al\nhlt")
    assert vcpu.run() == KVM_EXIT_MMIO
    exit_ = vcpu.exit.mmio
    assert (exit_.address, exit_.is_write, len(exit_.data)) == (0x100010, False, 1)
    exit_.data[:] = b"Z"
    assert vcpu.run() == KVM_EXIT_MMIO
    assert (exit_.address, exit_.is_write, bytes(exit_.data)) == (0x100011, True, b"Z")


def test_registers_are_written_and_read(vcpu):
    regs = vcpu.regs()
    for value, name in enumerate(REGISTER_NAMES, 100):
        if name != "rflags":
            setattr(regs, name, value)
    vcpu.set_regs(regs)
    back = vcpu.regs()
    assert [getattr(back, name) for name in REGISTER_NAMES[:-1]] == list(range(100, 117))


def test_a_kick_ends_a_guest_that_never_leaves(memory, vcpu):
    load(memory, vcpu, "here: jmp here")
    running, reasons = threading.Event(), []

    def run():
        vcpu.adopt_thread(threading.get_native_id())
        running.set()
        reasons.append(vcpu.run())

    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(10)
    vcpu.kick()
    thread.join(10)
    assert reasons == [KVM_EXIT_INTR]


def test_a_kick_before_the_run_is_not_lost(memory, vcpu):
    load(memory, vcpu, "here: jmp here")
    vcpu.adopt_thread(threading.get_native_id())
    vcpu.kick()
    assert vcpu.run() == KVM_EXIT_INTR
    assert vcpu.immediate_exit
    vcpu.immediate_exit = False


def test_coalesced_port_writes_wait_in_the_ring(vm, system, memory, vcpu):
    page = system.check_extension(KVM_CAP_COALESCED_MMIO)
    if not page or not system.check_extension(KVM_CAP_COALESCED_PIO):
        pytest.skip("this KVM does not coalesce port writes")
    vm.register_coalesced(0x80, 1, pio=True)
    load(memory, vcpu, "mov al, 1\nout 0x80, al\ninc al\nout 0x80, al\nhlt")
    assert vcpu.run() == KVM_EXIT_HLT
    assert vcpu.drain_coalesced(page) == [(0x80, b"\1", True), (0x80, b"\2", True)]
    assert vcpu.drain_coalesced(page) == []


def test_an_ioeventfd_takes_a_write_without_an_exit(vm, memory, vcpu):
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    vm.ioeventfd(fd, 0x510, 1, pio=True, match=7)
    load(memory, vcpu, "mov dx, 0x510\nmov al, 7\nout dx, al\ninc al\nout dx, al\nhlt")
    assert vcpu.run() == KVM_EXIT_IO
    assert bytes(vcpu.exit.io.data) == b"\x08"
    assert os.eventfd_read(fd) == 1
    vm.ioeventfd(fd, 0x510, 1, pio=True, match=7, deassign=True)
    os.close(fd)


def test_a_filtered_msr_is_answered_by_us(vm, memory, vcpu):
    vm.enable_cap(KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER)
    vm.set_msr_filter([MsrRange(MSR_IA32_TSC_AUX, 1, [MSR_IA32_TSC_AUX], KVM_MSR_FILTER_READ)])
    load(memory, vcpu, f"mov ecx, {MSR_IA32_TSC_AUX:#x}\nrdmsr\nout 0x80, al\nhlt")
    assert vcpu.run() == KVM_EXIT_X86_RDMSR
    assert vcpu.exit.msr.index == MSR_IA32_TSC_AUX
    vcpu.exit.msr.value = 0x1234567890
    assert vcpu.run() == KVM_EXIT_IO
    assert bytes(vcpu.exit.io.data) == b"\x90"


def test_the_irqchips_take_interrupts_and_keep_their_state(vm):
    vm.create_irqchip()
    vm.create_pit()
    state = vm.irqchip(KVM_IRQCHIP_IOAPIC)
    vm.set_irqchip(state)
    assert vm.irqchip(KVM_IRQCHIP_IOAPIC) == state
    pit = vm.pit()
    vm.set_pit(pit)
    assert len(vm.pit()) == len(pit)
    vm.irq_line(4, True)
    vm.set_gsi_routing([(4, KVM_IRQCHIP_IOAPIC, 4)], [(24, 0xFEE00000, 0x4031)])


def test_every_part_of_a_vcpus_state_goes_out_and_back(vm, system):
    vm.create_irqchip()
    with vm.create_vcpu(0) as vcpu:
        vcpu.set_cpuid(system.supported_cpuid())
        assert {entry.function for entry in vcpu.cpuid()} >= {0, 1, 0x80000000}
        for name in ("fpu", "events", "debug_regs", "lapic", "xcrs", "sregs2", "xsave", "mp_state", "sregs"):
            state = getattr(vcpu, name)()
            getattr(vcpu, f"set_{name}")(state)
            if isinstance(state, bytes):
                assert getattr(vcpu, name)() == state
        msrs = vcpu.msrs(system.msr_indices())
        assert 0x10 in msrs
        assert vcpu.set_msr(0xC0000102, 0x1000)
        assert vcpu.msr(0xC0000102) == 0x1000
        assert not vcpu.set_msr(0x12345678, 1)
        with pytest.raises(ValueError, match="0x12345678"):
            vcpu.msr(0x12345678)
        assert vcpu.tsc_khz() > 0


def test_the_dirty_log_names_the_page_that_the_guest_wrote(vm):
    from kvmpy.kvm.vm import KVM_MEM_LOG_DIRTY_PAGES

    with GuestMemory(MIB) as memory, vm.create_vcpu(0) as vcpu:
        vm.set_memory_region(0, 0, memory.regions[0].buffer, KVM_MEM_LOG_DIRTY_PAGES)
        load(memory, vcpu, "mov byte [0x5678], 1\nhlt")
        vm.dirty_log(0, MIB)
        assert vcpu.run() == KVM_EXIT_HLT
        bits = int.from_bytes(vm.dirty_log(0, MIB), "little")
        assert bits >> 5 & 1
        assert bits.bit_count() == 1


def test_statistics_count_exits(memory, vcpu):
    load(memory, vcpu, "out 0x80, al\nout 0x80, al\nhlt")
    fd = vcpu.stats_fd()
    before = read_stats(fd)["exits"]
    for _ in range(3):
        vcpu.run()
    assert read_stats(fd)["exits"] >= before + 3
    os.close(fd)


def test_nothing_is_left_open():
    before = set(os.listdir("/proc/self/fd"))
    with System() as system, system.create_vm() as vm, GuestMemory(MIB) as memory:
        vm.set_memory_region(0, 0, memory.regions[0].buffer)
        vm.create_vcpu(0).close()
    assert set(os.listdir("/proc/self/fd")) == before
