#!/usr/bin/env python3
"""Which ports does a guest touch, and how often?  Prints the busiest of a guest of your own or of a small one here.

02_count_exits.py [KERNEL]        a bzImage or vmlinux; it is stopped after 20 seconds
"""

import sys

from kvmpy import MachineConfig, build
from kvmpy.testing.asm import assemble

SMALL = """
        mov     cx, 1000
again:  out     0x80, al            ; a thousand times here
        loop    again
        mov     dx, 0x3f8           ; and once there
        out     dx, al
        hlt
"""

if len(sys.argv) > 1:
    config = MachineConfig(sys.argv[1])
else:
    config = MachineConfig(assemble(SMALL, bits=16, origin=0x7C00), protocol="flat16")

with build(config) as machine:
    outcome = machine.run(timeout=20)
    stats = machine.vcpus[0].stats

print(f"ended: {outcome.reason}; exits by reason: {stats.exits()}")
for port, count in sorted(stats.ports.items(), key=lambda item: -item[1])[:10]:
    print(f"{count:10} accesses to port {port:#06x}")
