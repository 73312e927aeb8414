"""Linux' own drivers for our virtio devices."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kvmpy.machine.virtio import VIRTIO_MMIO

BOOT = (sys.executable, "-m", "kvmpy", "boot")
LONG_ENOUGH = 400  # Seconds in which the larger kernel boots even where ring 0 is emulated.


@pytest.fixture
def shell(tmp_path):
    """Boots `kernel` to a shell, types these commands; what it said, and its report."""

    def run(kernel, *commands, options=()):
        report = tmp_path / "report.json"
        words = [*BOOT, kernel, "-m", "128M", "--timeout", str(LONG_ENOUGH), "--report", str(report), *options]
        text = "\n".join([*commands, "reboot -f", ""]).encode()
        done = subprocess.run(words, input=text, capture_output=True, timeout=2 * LONG_ENOUGH, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(report.read_text())

    return run


@pytest.mark.parametrize("flavour", ["kernel", pytest.param("full_kernel", marks=pytest.mark.full)])
def test_linux_draws_entropy_without_exits_for_kicks(shell, flavour, request):
    # By the command line without ACPI, and by its tables with it.
    said, report = shell(
        request.getfixturevalue(flavour),
        "cat /sys/class/misc/hw_random/rng_current",
        "head -c 4096 /dev/hwrng > /tmp/a; head -c 4096 /dev/hwrng > /tmp/b",
        "echo drew $(cat /tmp/a /tmp/b | wc -c); cmp -s /tmp/a /tmp/b || echo they differ",
        options=("--rng",),
    )
    assert b"\nvirtio_rng.0" in said
    assert b"\ndrew 8192" in said
    assert b"\nthey differ" in said
    # Its registers were exits, its notifications were not.
    assert hex(VIRTIO_MMIO) in report["mmio"]
    assert hex(VIRTIO_MMIO + 0x50) not in report["mmio"]
