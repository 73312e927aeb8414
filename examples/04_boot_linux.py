#!/usr/bin/env python3
"""Boots Linux from Python, catches what it prints, and says how long it took.

04_boot_linux.py [KERNEL [INITRD]]     without them: the kernel that `kvmpy kernel build` made, and a small init
"""

import os
import sys
import tempfile

from kvmpy import MachineConfig, build
from kvmpy.images.cache import NO_KERNEL, find_default_kernel
from kvmpy.testing.linux_init import init_printing, initramfs

kernel = sys.argv[1] if len(sys.argv) > 1 else find_default_kernel()
if kernel is None:
    sys.exit(NO_KERNEL)

with tempfile.TemporaryFile() as output, tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) > 2:
        initrd = sys.argv[2]
    else:
        initrd = os.path.join(folder, "initrd.cpio")
        with open(initrd, "wb") as file:
            file.write(initramfs(init_printing("Linux says hello\n")))
    with build(MachineConfig(kernel, initrd=initrd, memory=64 << 20), output_fd=output.fileno()) as machine:
        outcome = machine.run(timeout=300)
    output.seek(0)
    print(output.read().decode(errors="replace"), end="")

seconds = (machine.timeline.milliseconds()["end"] or 0) / 1000
print(f"{outcome.reason} after {seconds:.1f} s, on a host of kind {machine.profile.kind}")
