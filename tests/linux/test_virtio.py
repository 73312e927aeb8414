"""Linux' own drivers for our virtio devices."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kvmpy.machine.virtio import VIRTIO_MMIO
from kvmpy.x86.layout import PCI_MEMORY32

BOOT = (sys.executable, "-m", "kvmpy", "boot")
LONG_ENOUGH = 400  # Seconds in which the larger kernel boots even where ring 0 is emulated.


# Wants 4 MiB of the guest's memory, and ends the machine when the guest says that they are in the balloon.
BALLOON_SCRIPT = f"""
machine.balloon.target = 4 << 20

@on_mmio({VIRTIO_MMIO + 0x104})
def actual(access):
    if access.is_write and access.value == 1024:
        machine.stop()
"""


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


def test_a_balloon_takes_what_a_script_wants_and_tells_of_it(shell, kernel, tmp_path):
    script = tmp_path / "balloon.py"
    script.write_text(BALLOON_SCRIPT)
    _, report = shell(kernel, "while true; do :; done", options=("--balloon", "--script", str(script)))
    assert report["exit"]["reason"] == "user"
    (balloon,) = report["virtio"]
    assert balloon["bytes"] >= 4 << 20
    assert (balloon["errors"], balloon["breaks"]) == (0, 0)


@pytest.mark.parametrize(
    ("flavour", "transport", "registers", "notify"),
    [
        # By the command line without ACPI, and by its tables with it.
        ("kernel", "mmio", VIRTIO_MMIO, 0x50),
        pytest.param("full_kernel", "mmio", VIRTIO_MMIO, 0x50, marks=pytest.mark.full),
        ("full_kernel", "pci", PCI_MEMORY32, 0x3000),
    ],
)
def test_linux_draws_entropy_without_exits_for_kicks(shell, request, flavour, transport, registers, notify):
    said, report = shell(
        request.getfixturevalue(flavour),
        "cat /sys/class/misc/hw_random/rng_current",
        "head -c 4096 /dev/hwrng > /tmp/a; head -c 4096 /dev/hwrng > /tmp/b",
        "echo drew $(cat /tmp/a /tmp/b | wc -c); cmp -s /tmp/a /tmp/b || echo they differ",
        options=("--rng", "--virtio", transport),
    )
    assert b"\nvirtio_rng.0" in said
    assert b"\ndrew 8192" in said
    assert b"\nthey differ" in said
    # Its registers were exits, its notifications were not.
    assert hex(registers) in report["mmio"]
    assert hex(registers + notify) not in report["mmio"]
    (rng,) = report["virtio"]
    assert rng["bytes"] >= 8192
    assert 0 < rng["interrupts"] <= rng["kicks"] <= rng["requests"] == rng["queues"][0]["pushed"]
