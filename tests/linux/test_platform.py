"""A PC around Linux: processors, ACPI, the ways in which a kernel ends."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kvmpy.testing.linux_init import init_panic

BOOT = (sys.executable, "-m", "kvmpy", "boot")
LONG_ENOUGH = 400  # Seconds in which the larger kernel boots even where ring 0 is emulated.


@pytest.fixture
def shell(full_kernel, tmp_path):
    """Boots to a shell, types these commands, and gives the process and its report."""

    def run(*commands, options=()):
        report = tmp_path / "report.json"
        words = [*BOOT, full_kernel, "-m", "128M", "--timeout", str(LONG_ENOUGH), "--report", str(report), *options]
        text = "\n".join([*commands, ""]).encode()
        done = subprocess.run(words, input=text, capture_output=True, timeout=2 * LONG_ENOUGH, check=False)
        return done, json.loads(report.read_text())

    return run


@pytest.mark.parametrize("cpus", [2, pytest.param(4, marks=pytest.mark.full)])
def test_linux_has_all_its_processors_and_poweroff_ends_it(shell, cpus):
    done, report = shell("echo $(nproc) processors", "poweroff -f", options=("-c", str(cpus)))
    assert f"{cpus} processors".encode() in done.stdout, done.stderr
    assert report["exit"] == {"status": 0, "reason": "shutdown", "message": ""}
    assert done.returncode == 0
    assert report["vcpus"] == cpus


def test_one_processor_and_reboot_ends_it_too(shell):
    done, report = shell("echo $(nproc) processor; cat /sys/bus/acpi/devices/LNXSYSTM:00/path", "reboot -f")
    assert b"1 processor" in done.stdout, done.stderr
    assert b"\\" in done.stdout
    assert report["exit"] == {"status": 0, "reason": "reset", "message": ""}


def test_a_panic_is_told_by_pvpanic(kvmpy_boot, full_kernel, initrd):
    # With panic=0 the kernel stays where it is for ever, so nothing else can end it.
    done = kvmpy_boot(full_kernel, "-i", initrd(init_panic()), "-m", "128M", "-a", "panic=0")
    assert done.returncode == 3
    assert b"Kernel panic - not syncing: Attempted to kill init!" in done.stderr


def test_poweroff_ends_a_machine_whose_kernel_has_no_acpi(kernel):
    words = [*BOOT, kernel, "-m", "64M", "--timeout", str(LONG_ENOUGH)]
    done = subprocess.run(words, input=b"poweroff\n", capture_output=True, timeout=2 * LONG_ENOUGH, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
