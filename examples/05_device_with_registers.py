#!/usr/bin/env python3
"""A device of ten lines: its registers are declared, and what the guest reads and writes there is Python."""

from kvmpy import MachineConfig, build
from kvmpy.machine.script import Register, RegisterDevice
from kvmpy.testing.asm import assemble


class Thermometer(RegisterDevice):
    """How warm it is, from when on to ring, and whether that was."""

    celsius = Register(0, 2, read=lambda self: 21)
    alarm = Register(2, 2, reset=100)
    rung = Register(4, 1, readonly=True)

    @alarm.on_write
    def set_alarm(self, value):
        print(f"the guest wants to be told at {value} degrees")
        self.rung = int(value <= 25)


GUEST = """
        mov     ax, [0x10000000]        ; how warm is it?
        add     ax, 3
        mov     [0x10000002], ax        ; tell me when it is 3 degrees more
        mov     al, [0x10000004]
        out     0xf4, al                ; and leave with whether that is now
"""

code = assemble(GUEST, bits=32, origin=0x100000)
with build(MachineConfig(code, protocol="flat32", memory=2 << 20, debug_exit=0xF4)) as machine:
    machine.mmio.add(0x10000000, Thermometer.size, Thermometer())
    outcome = machine.run(timeout=10)
print(f"and read that it {'rang' if outcome.status >> 1 else 'did not ring'}")
