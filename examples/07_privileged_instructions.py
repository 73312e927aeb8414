#!/usr/bin/env python3
"""A tour of the privileged instructions: what each one makes in ring 0, and who answers it.

Each runs in a guest of its own, between two marks at which KVM's statistics and the exits are looked at.  The answer is
this host's: a processor with VT-x or AMD-V runs many of them by itself, and a KVM without emulates every one.
"""

import struct

from kvmpy import MachineConfig, build
from kvmpy.kvm.stats import read_stats
from kvmpy.testing.asm import assemble

MARK, FAULT, IDT, SCRIPTED_MSR = 0x10, 0x11, 0x180000, 0x4B564D42

# An instruction, and behind the bar what has to be done before.
INSTRUCTIONS = (
    "nop", "in al, 0x42", "out 0x42, al", "mov eax, [0x10000000]", "hlt", "cli", "sti", "cpuid", "rdtsc",
    "mov rax, cr0", "mov cr0, rax | mov rax, cr0", "mov cr3, rax | mov rax, cr3", "mov cr4, rax | mov rax, -1",
    "mov cr8, rax | xor eax, eax", "mov rax, dr7", "mov dr7, rax | mov eax, 0x400", "clts", "lmsw ax | mov ax, 1",
    "lgdt [table]", "lidt [table]", "sgdt [buffer]", "ltr ax | xor eax, eax", "invlpg [0]", "invd", "wbinvd", "swapgs",
    "rdmsr | mov ecx, 0x1b", "rdmsr | mov ecx, 0x4b564d42", "rdmsr | mov ecx, 0x12345", "rdpmc | mov ecx, 99",
    "xsetbv | xor ecx, ecx", "popcnt eax, eax", "int3", "ud2",
)  # fmt: skip

NAMES = {1: "#DB", 3: "#BP", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF"}

GUEST = """
        lidt    [table]
        BEFORE
        out     MARK, al
        INSTRUCTION
        out     MARK, al
        hlt
table:  dw      0x1ff
        dq      IDT
buffer: dq      0, 0
""" + "".join(f"align 16\n fault{vector}: mov al, {vector}\n out FAULT, al\n hlt\n" for vector in range(32))


def watch(instruction, before=""):
    """(vectors of faults, names of exits, instructions that KVM emulated, exits to KVM) between the marks"""
    source = GUEST.replace("INSTRUCTION", instruction).replace("BEFORE", before)
    code = assemble(source, origin=0x100000, MARK=MARK, FAULT=FAULT, IDT=IDT)
    handlers = (code.labels[f"fault{vector}"] for vector in range(32))
    gates = b"".join(struct.pack("<HHHHQ", at & 0xFFFF, 0x10, 0x8E00, at >> 16, 0) for at in handlers)
    marks, faults = [], []

    with (
        build(MachineConfig(code, protocol="flat64", memory=2 << 20)) as machine,
        open(machine.vcpus[0].vcpu.stats_fd(), "rb") as statistics,
    ):
        machine.memory.write(IDT, gates)

        @machine.on_pio(MARK)
        def mark(event):
            marks.append((read_stats(statistics.fileno()), machine.vcpus[0].stats.exits()))

        @machine.on_pio(FAULT)
        def fault(event):
            faults.append(event.value)
            mark(event)

        machine.on_msr(SCRIPTED_MSR, lambda event: 42)
        machine.on_exit("hlt", lambda event: len(marks) < 2)
        outcome = machine.run(timeout=10)

    if len(marks) < 2:
        return [], [outcome.reason], 0, 0
    (kvm_first, first), (kvm_second, second) = marks[:2]
    # The mark itself is an access to a port.
    exits = [name for name in second if second[name] - first.get(name, 0) > (name == "io")]
    return faults, exits, *(kvm_second[name] - kvm_first[name] for name in ("insn_emulation", "exits"))


_, _, emulated_marks, exits_of_marks = watch("")
for entry in INSTRUCTIONS:
    instruction, _, before = entry.partition(" | ")
    faults, exits, emulated, kvm_exits = watch(instruction, before)
    if "internal_error" in exits:
        who = "kvmpy, since KVM's emulator gives up"
    elif exits:
        who = "kvmpy"
    elif emulated > emulated_marks:
        who = "the kernel's emulator"
    else:
        who = "KVM" if kvm_exits > exits_of_marks else "the processor"
    made = [NAMES.get(vector, f"exception {vector}") for vector in faults] + [f"exit {name}" for name in exits]
    print(f"{entry.partition(' | ')[0]:24} {before:22} {', '.join(made) or '-':26} {who}")
