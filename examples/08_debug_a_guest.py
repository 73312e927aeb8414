#!/usr/bin/env python3
"""A guest under a debugger that is Python: a breakpoint by name, registers, single steps, and a value changed."""

from kvmpy import MachineConfig, build
from kvmpy.machine.script import Symbols
from kvmpy.testing.asm import assemble

GUEST = """
start:  mov     ecx, 3
again:  mov     eax, ecx
        call    square
        add     ebx, eax
        loop    again
        mov     eax, ebx
        out     0xf4, al                ; 9 + 4 + 1
square: imul    eax, eax
        ret
"""

code = assemble(GUEST, origin=0x100000)
with (
    build(MachineConfig(code, protocol="flat64", memory=2 << 20, debug_exit=0xF4)) as machine,
    machine.debugger(Symbols(code.labels)) as debugger,
):
    debugger.break_at("square")
    while (stop := debugger.run(timeout=10)).reason == "breakpoint":
        registers = debugger.registers()
        caller = debugger.symbols.describe(debugger.memory().read_int(registers.rsp))
        print(f"square({registers.eax}), called from before {caller}")
        if registers.eax == 1:
            print("  which shall be square(5)")
            registers.eax = 5
        for _ in range(2):
            stop = debugger.step()
            print(f"  {debugger.symbols.describe(stop.address)}: eax is {debugger.registers().eax}")

print(f"the guest's sum: {stop.outcome.status >> 1}")
