#!/usr/bin/env python3
"""KVM's own API from Python, with nothing between: a VM, a page of memory, a processor, and the exits by hand."""

from kvmpy.kvm import System
from kvmpy.kvm.exits import KVM_EXIT_HLT, KVM_EXIT_IO
from kvmpy.memory import GuestMemory
from kvmpy.testing.asm import assemble

ORIGIN = 0x1000
CODE = assemble("mov al, 2\n add al, 3\n out 0x10, al\n hlt", bits=16, origin=ORIGIN)

with System() as system, system.create_vm() as vm, GuestMemory(64 << 10) as memory:
    vm.set_memory_region(0, 0, memory.regions[0].buffer)
    memory.write(ORIGIN, CODE)
    with vm.create_vcpu(0) as vcpu:
        sregs = vcpu.sregs()
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set_sregs(sregs)
        regs = vcpu.regs()
        regs.rip = ORIGIN
        vcpu.set_regs(regs)
        while (reason := vcpu.run()) != KVM_EXIT_HLT:
            if reason == KVM_EXIT_IO:
                print(f"port {vcpu.exit.io.port:#x}: the guest says 2 + 3 is {vcpu.exit.io.data[0]}")
        print(f"halted at {vcpu.regs().rip:#x}")
