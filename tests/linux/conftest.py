"""What the tests with a real Linux share: its kernel, and `kvmpy boot` as users start it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvmpy.images.cache import kernels_folder
from kvmpy.testing.linux_init import initramfs

BOOT = (sys.executable, "-m", "kvmpy", "boot")
LONG_ENOUGH = 240  # Seconds in which a guest boots even where ring 0 is emulated and others use the machine.


def built(flavour):
    """The folder of a built kernel, with its vmlinux and bzImage."""
    folder = os.path.join(kernels_folder(), flavour)
    if not os.path.exists(os.path.join(folder, "vmlinux")):
        pytest.fail(f"there is no {flavour} kernel; scripts/build-guest-kernel {flavour} builds it")
    return folder


@pytest.fixture(scope="session")
def kernel_folder():
    return built("base")


@pytest.fixture(scope="session")
def kernel(kernel_folder):
    return os.path.join(kernel_folder, "vmlinux")


@pytest.fixture(scope="session")
def full_kernel():
    """The kernel with SMP, ACPI and PCI."""
    return os.path.join(built("full"), "vmlinux")


@pytest.fixture
def initrd(tmp_path):
    """Writes an initramfs around an init program; its path."""

    def make(init):
        path = tmp_path / "initrd.cpio"
        path.write_bytes(initramfs(init))
        return str(path)

    return make


@pytest.fixture
def kvmpy_boot():
    """Runs `kvmpy boot` with these words to its end."""

    def run(*words, **options):
        return subprocess.run(
            [*BOOT, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=LONG_ENOUGH, check=False, **options
        )

    return run
