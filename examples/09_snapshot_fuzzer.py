#!/usr/bin/env python3
"""A snapshotting fuzzer's skeleton: the guest runs up to a point once, and each try starts from there again.

The guest takes four bytes and crashes over one secret word.  It tells at a port how far each input came, and the inputs
that came further than any before are what the next ones are made from.  Between two tries only what the guest wrote is
put back: KVM's dirty log says which pages.
"""

import random
import time

from kvmpy.kvm import System
from kvmpy.kvm.exits import KVM_EXIT_IO
from kvmpy.kvm.vm import KVM_MEM_LOG_DIRTY_PAGES
from kvmpy.memory import GuestMemory
from kvmpy.testing.asm import assemble
from kvmpy.units import PAGE_SIZE

ORIGIN, INPUT, SIZE = 0x1000, 0x3000, 0x10000
READY, FURTHER, CRASHED = 0x10, 0x11, 0x12

GUEST = """
        mov     byte [0x4000], 1        ; what takes long and need not be done again
        out     READY, al
        mov     si, INPUT
        mov     di, secret
        mov     cx, 4
        cld
next:   cmpsb
        jne     over
        out     FURTHER, al
        loop    next
        out     CRASHED, al
over:   hlt
secret: db      "KVM!"
"""


class Fuzzer:
    """One virtual machine that is put back to its snapshot before each try."""

    def __init__(self, vm, vcpu, memory):
        self.vm, self.vcpu, self.memory = vm, vcpu, memory
        self.regs, self.sregs = vcpu.regs(), vcpu.sregs()
        self.snapshot = memory.read(0, SIZE)
        vm.dirty_log(0, SIZE)  # From here on it counts.

    def restore(self):
        """Puts back the registers and the pages that were written."""
        dirty = int.from_bytes(self.vm.dirty_log(0, SIZE), "little")
        for page in range(SIZE // PAGE_SIZE):
            if dirty >> page & 1:
                start = page * PAGE_SIZE
                self.memory.write(start, self.snapshot[start : start + PAGE_SIZE])
        self.vcpu.set_sregs(self.sregs)
        self.vcpu.set_regs(self.regs)

    def run(self, data):
        """How far `data` came, and whether the guest crashed."""
        self.restore()
        self.memory.write(INPUT, data)
        reached = 0
        while self.vcpu.run() == KVM_EXIT_IO:
            if self.vcpu.exit.io.port == CRASHED:
                return reached, True
            reached += 1
        return reached, False


with System() as system, system.create_vm() as vm, GuestMemory(SIZE) as memory:
    vm.set_memory_region(0, 0, memory.regions[0].buffer, KVM_MEM_LOG_DIRTY_PAGES)
    names = {"READY": READY, "FURTHER": FURTHER, "CRASHED": CRASHED, "INPUT": INPUT}
    memory.write(ORIGIN, assemble(GUEST, bits=16, origin=ORIGIN, **names))
    with vm.create_vcpu(0) as vcpu:
        sregs, regs = vcpu.sregs(), vcpu.regs()
        sregs.cs.base = sregs.cs.selector = 0
        regs.rip = ORIGIN
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        assert vcpu.run() == KVM_EXIT_IO  # It is ready.
        vcpu.immediate_exit = True
        vcpu.run()  # Lets KVM finish that `out`, so that the state is whole.
        vcpu.immediate_exit = False

        fuzzer, dice = Fuzzer(vm, vcpu, memory), random.Random(1)
        best, furthest, tries, started = bytes(4), 0, 0, time.monotonic()
        crashed = False
        while not crashed:
            data = bytearray(best)
            data[dice.randrange(4)] = dice.randrange(256)
            reached, crashed = fuzzer.run(bytes(data))
            tries += 1
            if reached > furthest or crashed:
                best, furthest = bytes(data), reached
        seconds = time.monotonic() - started

print(f"{best!r} crashes the guest; found in {tries} tries, {tries / seconds:.0f} a second")
