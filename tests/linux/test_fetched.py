"""The distribution's own kernel, unmodified: fetched, booted with the modules that our devices need."""

from __future__ import annotations

import subprocess
import sys

import pytest

KVMPY = (sys.executable, "-m", "kvmpy")
LONG_ENOUGH = 3000  # Seconds: where ring 0 is emulated a kernel for every machine takes a quarter of an hour.


@pytest.mark.full
@pytest.mark.timeout(LONG_ENOUGH)
def test_the_distributions_kernel_reaches_a_shell_with_our_drivers():
    fetched = subprocess.run([*KVMPY, "kernel", "fetch"], capture_output=True, text=True, check=True)
    kernel = fetched.stdout.strip().splitlines()[-1]
    words = [*KVMPY, "boot", kernel, "-m", "256M", "--timeout", str(LONG_ENOUGH)]
    text = b"echo kernel $(uname -r); cat /proc/modules; exit\n"
    done = subprocess.run(words, input=text, capture_output=True, timeout=LONG_ENOUGH, check=False)
    assert done.returncode == 0, done.stderr
    assert b"cloud-amd64" in done.stdout
    assert b"virtio_blk" in done.stdout
