"""Debian's memtest86+, as it is packaged: a kernel by Linux' boot protocol that is no Linux."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.images import debian
from kvmpy.machine.builder import build
from kvmpy.units import MIB

PACKAGE = "memtest86+"
LONG_ENOUGH = 120  # Seconds, most of them for the download; the screen is there within one.

TEXT_MEMORY = 0xB8000
COLUMNS, ROWS = 80, 25


def screen(machine):
    """The lines of the VGA text screen; each character has a byte of colours behind it."""
    cells = machine.memory.read(TEXT_MEMORY, 2 * COLUMNS * ROWS)[::2].decode("cp437")
    return [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The package's 64-bit image."""
    folder = tmp_path_factory.mktemp("memtest")
    debian.run("apt-get", "download", PACKAGE, folder=str(folder))
    (archive,) = folder.glob("*.deb")
    debian.run("dpkg-deb", "--extract", str(archive), str(folder / "tree"))
    (found,) = Path(folder, "tree", "boot").glob("memtest86+x64.bin")
    return str(found)


@pytest.fixture
def machine(image):
    with build(MachineConfig(image, memory=64 * MIB)) as made:
        yield made


def until(machine, condition):
    """Lets the machine run until `condition` of its screen holds, or it ends; the screen then."""
    ended = threading.Event()
    machine.on_end.append(lambda _outcome: ended.set())
    deadline = time.monotonic() + LONG_ENOUGH
    machine.start()
    while not condition(screen(machine)) and time.monotonic() < deadline and not ended.wait(0.1):
        pass
    return screen(machine)


@pytest.mark.full
@pytest.mark.timeout(3 * LONG_ENOUGH)
def test_memtest_reaches_its_screen(machine):
    lines = until(machine, lambda lines: "Memory" in lines[5] and "Cores" in lines[7])
    assert "Memtest86+ v" in lines[0], "\n".join(lines)
    assert "64MB" in lines[5]
    assert "1 Cores" in lines[7]


@pytest.mark.full
@pytest.mark.timeout(3 * LONG_ENOUGH)
def test_memtest_tests_memory_without_an_error(machine):
    lines = until(machine, lambda lines: "Status: Testing" in lines[7] and "Test #" in lines[3])
    assert "Status: Testing" in lines[7], "\n".join(lines)
    assert "Errors: 0 " in lines[8]
    assert machine.outcome is None
