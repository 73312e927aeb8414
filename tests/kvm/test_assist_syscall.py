"""SYSCALL from ring 3, with the shim in place: the guest sees the same where the processor does all of it by itself."""

from __future__ import annotations

import struct

import pytest

from kvmpy.kvm.exits import (
    KVM_EXIT_HLT,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_X86_WRMSR,
)
from kvmpy.machine.assist import finish
from kvmpy.machine.assist.report import describe_crash
from kvmpy.machine.assist.syscall import IA32_LSTAR, SyscallShim, install
from kvmpy.memory import GuestMemory
from kvmpy.testing.asm import assemble
from kvmpy.units import MIB

GDT, TSS, IDT, PML4, PDPT, DIRECTORY, TABLE = 0x2000, 0x3000, 0x4000, 0x9000, 0xA000, 0xB000, 0xC000
KERNEL, USER, USER_STACK, KERNEL_STACK = 0x10000, 0x40000, 0x50000, 0x80000
P, W, U = 1, 2, 4
GP, PF = 13, 14
FMASK = 0x47700  # TF IF DF IOPL NT AC, as Linux has it

# `start` goes to user space; `lstar` serves two system calls: rax 0 stops with all registers as they are, any other
# counts in r13 and returns.  `fault` stops with the vector in rax and the exception's frame under rsp.
SOURCE = """
start:
        mov     ecx, 0xc0000081         ; STAR
        mov     edx, 0x00180008
        xor     eax, eax
        wrmsr
        mov     ecx, 0xc0000084         ; FMASK
        xor     edx, edx
        mov     eax, FMASK
        wrmsr
        mov     ecx, 0xc0000082         ; LSTAR
        mov     edx, LSTAR_HIGH
        mov     eax, lstar
        times WRITES wrmsr
        push    0x23
        push    USER_STACK
        push    USER_FLAGS
        push    0x2b
        push    USER
        iretq
        align 64, 0x90
        times PADDING db 0xcc
        align 64, 0x90
lstar:
        test    rax, rax
        jz      done
        inc     r13
        sysretq
done:
        pushfq
        pop     rbx
        mov     dx, cs
        hlt
fault13:
        mov     eax, 13
        hlt
fault14:
        mov     eax, 14
        hlt
other:
        mov     eax, 0xff
        hlt
"""


class Guest:
    """A small kernel with a user program; the kernel's padding can be left out."""

    def __init__(self, system, vm, memory):
        self.vm, self.memory = vm, memory
        self.shim = SyscallShim(memory)
        install(vm)
        self.vcpus = [vm.create_vcpu(0), vm.create_vcpu(1)]
        for slot, region in enumerate(memory.regions):
            vm.set_memory_region(slot, region.start, region.buffer)
        pages = [page << 12 | P | W | (U if USER <= page << 12 < USER_STACK + 0x1000 else 0) for page in range(512)]
        memory.write(TABLE, struct.pack("<512Q", *pages))
        for table, entry in ((PML4, PDPT), (PDPT, DIRECTORY), (DIRECTORY, TABLE)):
            memory.write(table, struct.pack("<Q", entry | P | W | U))
        code, data, user = 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x60 << 40
        # STAR wants: kernel code, kernel data; user code of 32 bits, user data, user code.
        rows = (0, code, data, 0x00CF9B000000FFFF | user, data | user, code | user, 0x0000890030000067, 0)
        memory.write(GDT, struct.pack("<8Q", *rows))
        memory.write(TSS + 4, struct.pack("<Q", KERNEL_STACK))
        for vcpu in self.vcpus:
            vcpu.set_cpuid(system.supported_cpuid())
            self._enter_long_mode(vcpu)

    @staticmethod
    def _enter_long_mode(vcpu):
        sregs = vcpu.sregs()
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            segment = getattr(sregs, name)
            segment.base, segment.limit, segment.dpl, segment.unusable = 0, 0xFFFFFFFF, 0, 0
            segment.present = segment.s = segment.g = 1
            is_code = name == "cs"
            segment.selector, segment.type, segment.l, segment.db = (8, 11, 1, 0) if is_code else (16, 3, 0, 1)
        task = sregs.tr
        task.base, task.limit, task.selector, task.type = TSS, 0x67, 0x30, 11
        task.present, task.s, task.g, task.unusable = 1, 0, 0, 0
        sregs.gdt.base, sregs.gdt.limit = GDT, 0x3F
        sregs.idt.base, sregs.idt.limit = IDT, 0x1FF
        # PE MP ET NE WP PG; PAE OSFXSR; SCE LME LMA.
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80010033, PML4, 0x220, 0x501
        vcpu.set_sregs(sregs)

    def run(self, program, *, padding=64, flags=0x202, writes=1, lstar_high=0):
        """Boots into the user `program`; the registers where the kernel halts."""
        names = {"USER": USER, "USER_STACK": USER_STACK, "USER_FLAGS": flags, "FMASK": FMASK, "PADDING": padding}
        kernel = assemble(SOURCE, bits=64, origin=KERNEL, WRITES=writes, LSTAR_HIGH=lstar_high, **names)
        self.labels = kernel.labels
        self.memory.write(KERNEL, kernel)
        user = assemble(program, bits=64, origin=USER, LSTAR=kernel.labels["lstar"])
        self.user_labels = user.labels
        self.memory.write(USER, user)
        for vector in range(32):
            handler = kernel.labels.get(f"fault{vector}", kernel.labels["other"])
            self.memory.write(
                IDT + 16 * vector, struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0)
            )
        vcpu = self.vcpus[0]
        regs = vcpu.regs()
        regs.rip, regs.rsp, regs.rflags, regs.r13 = KERNEL, KERNEL_STACK, 2, 0
        vcpu.set_regs(regs)
        self.writes = 0
        while (reason := vcpu.run()) != KVM_EXIT_HLT:
            if reason == KVM_EXIT_X86_WRMSR:
                assert vcpu.exit.msr.index == IA32_LSTAR
                self.writes += 1
                self.shim.on_wrmsr(vcpu, vcpu.exit.msr.value)
            else:
                assert reason == KVM_EXIT_INTERNAL_ERROR, describe_crash(vcpu, self.memory)
                assert finish(vcpu, self.memory), describe_crash(vcpu, self.memory)
        return vcpu.regs()

    def frame(self, regs):
        """The exception's frame: error code, RIP, CS, RFLAGS, RSP."""
        return struct.unpack("<5Q", self.memory.read(regs.rsp, 40))

    def gate(self):
        """Where gate 14 leads."""
        low, _, _, _, middle, high, _ = struct.unpack("<HHBBHII", self.memory.read(IDT + 16 * PF, 16))
        return high << 32 | middle << 16 | low


@pytest.fixture
def guest(system):
    with GuestMemory(2 * MIB) as memory, system.create_vm() as vm:
        guest = Guest(system, vm, memory)
        try:
            yield guest
        finally:
            for vcpu in guest.vcpus:
                vcpu.close()


STOP = "xor eax, eax\n syscall\nbehind: ud2"


def test_the_kernel_sees_what_syscall_leaves(guest):
    regs = guest.run(STOP, flags=0x602)
    assert regs.rip > guest.labels["done"]
    assert regs.rcx == guest.user_labels["behind"]
    assert regs.r11 & 0x600 == 0x600
    assert regs.rbx & FMASK == 0
    assert regs.rsp == USER_STACK
    assert regs.rdx & 0xFFFF == 8


def test_system_calls_return(guest):
    program = """
        mov     ecx, 100
    next:
        mov     ebx, ecx
        mov     eax, 1
        syscall
        mov     ecx, ebx
        loop    next
    """
    assert guest.run(program + STOP).r13 == 100


def test_a_page_fault_of_the_program_goes_to_the_kernel(guest):
    regs = guest.run("here: mov [0x100000], eax")
    assert regs.rax == PF
    assert guest.frame(regs) == (P | W | U, guest.user_labels["here"], 0x2B, guest.frame(regs)[3], USER_STACK)


def test_a_jump_to_the_entry_is_a_page_fault(guest):
    regs = guest.run("mov r11d, 0x3202\n mov rcx, 0x40000\n xor eax, eax\n mov rbx, LSTAR\n jmp rbx")
    assert regs.rax == PF
    assert guest.frame(regs)[1:3] == (guest.labels["lstar"], 0x2B)


def test_the_entry_is_written_more_than_once(guest):
    assert guest.run("mov eax, 1\n syscall\n" + STOP, writes=3).r13 == 1
    assert guest.writes == 3


def test_an_address_that_is_not_canonical_is_gp(guest):
    regs = guest.run(STOP, lstar_high=0x80000000)
    assert regs.rax == GP


def test_without_padding_the_guest_is_left_alone(guest):
    regs = guest.run("ud2", padding=0)
    assert regs.rax == 0xFF
    assert guest.gate() == guest.labels["fault14"]
    assert "no padding" in guest.shim.note


def test_the_trampoline_lies_in_the_padding(guest):
    guest.run(STOP)
    text = guest.memory.read(guest.gate(), 40)
    kernel = guest.memory.read(KERNEL, 0x1000)
    assert text.startswith(bytes.fromhex("48817c2408"))
    assert guest.gate() > guest.labels["start"]
    assert guest.gate() + 40 <= guest.labels["lstar"]
    assert kernel.count(text) == 1


def test_another_vcpu_shares_the_trampoline(guest):
    guest.run(STOP)
    before = guest.memory.read(0, 2 * MIB)
    vcpu = guest.vcpus[1]
    assert guest.shim.place(vcpu, guest.labels["lstar"])
    assert guest.memory.read(0, 2 * MIB) == before


def test_a_new_shim_takes_over_what_it_finds(guest):
    guest.run(STOP)
    before = guest.memory.read(0, 2 * MIB)
    assert SyscallShim(guest.memory).place(guest.vcpus[1], guest.labels["lstar"])
    assert guest.memory.read(0, 2 * MIB) == before


def test_a_gate_that_the_kernel_set_back_is_pointed_at_the_same_trampoline(guest):
    guest.run(STOP)
    trampoline = guest.gate()
    handler = guest.labels["fault14"]
    before = guest.memory.read(0, 2 * MIB)
    guest.memory.write(IDT + 16 * PF, struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0))
    assert guest.shim.place(guest.vcpus[1], guest.labels["lstar"])
    assert guest.gate() == trampoline
    assert guest.memory.read(0, 2 * MIB) == before


def test_a_moved_entry_gets_a_trampoline_of_its_own(guest):
    guest.run(STOP, padding=128)
    first = guest.gate()
    assert guest.shim.place(guest.vcpus[1], guest.labels["done"])
    assert guest.gate() != first
    code = guest.memory.read(guest.gate(), 40)
    to_handler = struct.unpack_from("<i", code, 36)[0]
    assert guest.gate() + 40 + to_handler == guest.labels["fault14"]


@pytest.mark.parametrize(
    ("offset", "value"),
    [(5, 0x0E), (5, 0xEE), (5, 0x8C), (2, 0x10)],
    ids=["not present", "open to ring 3", "call gate", "other selector"],
)
def test_a_strange_gate_is_left_alone(guest, offset, value):
    guest.run(STOP)
    handler = guest.labels["fault14"]
    gate = bytearray(struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0))
    gate[offset] = value
    guest.memory.write(IDT + 16 * PF, gate)
    assert not guest.shim.place(guest.vcpus[1], guest.labels["lstar"])
    assert guest.memory.read(IDT + 16 * PF, 16) == gate
    assert "gate 14" in guest.shim.note


def test_an_entry_in_user_memory_is_left_alone(guest):
    guest.run(STOP)
    before = guest.memory.read(0, 2 * MIB)
    assert not guest.shim.place(guest.vcpus[1], USER)
    assert guest.memory.read(0, 2 * MIB) == before


@pytest.mark.parametrize(("base", "limit"), [(IDT, 0xEE), (IDT + 0xF18, 0x1FF), (0xD0000000, 0x1FF), (1 << 63, 0x1FF)])
def test_an_idt_without_gate_14_is_left_alone(guest, base, limit):
    guest.run(STOP)
    vcpu = guest.vcpus[1]
    sregs = vcpu.sregs()
    sregs.idt.base, sregs.idt.limit = base, limit
    vcpu.set_sregs(sregs)
    assert not guest.shim.place(vcpu, guest.labels["lstar"])
