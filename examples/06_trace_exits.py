#!/usr/bin/env python3
"""What does a guest say to its hardware?  Every access to a range of ports, with its value, as it happens.

06_trace_exits.py [KERNEL [FIRST LAST]]     a bzImage or vmlinux, stopped after 20 seconds, and ports other than COM1's
"""

import sys

from kvmpy import MachineConfig, build
from kvmpy.testing.asm import assemble

SMALL = """
        mov     dx, 0x3fb               ; the line control register of the first serial port:
        mov     al, 0x83                ; let me at the divisor,
        out     dx, al
        mov     dx, 0x3f8
        mov     ax, 1                   ; 115200 baud,
        out     dx, ax
        mov     dx, 0x3fb
        mov     al, 3                   ; 8 bits, no parity
        out     dx, al
        mov     dx, 0x3fd
wait:   in      al, dx                  ; is there room to send?
        test    al, 0x20
        jz      wait
        mov     dx, 0x3f8
        mov     al, 'k'
        out     dx, al
        hlt
"""

if len(sys.argv) > 1:
    config = MachineConfig(sys.argv[1])
else:
    config = MachineConfig(assemble(SMALL, bits=16, origin=0x7C00), protocol="flat16")
first, last = (int(text, 0) for text in sys.argv[2:4]) if len(sys.argv) > 3 else (0x3F8, 0x3FF)

with build(config) as machine:
    trace = machine.trace(range(first, last + 1), print)
    outcome = machine.run(timeout=20)
print(f"ended: {outcome.reason}")
