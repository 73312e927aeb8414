#!/usr/bin/env python3
"""A guest of nine bytes rolls a die that is a Python object: the whole of scripting an exit."""

import random

from kvmpy import MachineConfig, build
from kvmpy.testing.asm import assemble


class Die:
    """A device: what the guest reads at its port is a throw, what it writes is shown."""

    def read(self, offset, data):
        data[0] = random.randint(1, 6)

    def write(self, offset, data):
        print(f"the guest rolled a {data[0]}")


code = assemble("in al, 0x42\n out 0x42, al\n hlt", bits=16)
with build(MachineConfig(code, protocol="flat16")) as machine:
    machine.pio.add(0x42, 1, Die())
    outcome = machine.run(timeout=10)
print(f"and ended: {outcome.reason}")
