"""Each boot protocol and mode on a whole machine: bare-metal guests check what they are promised."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import DEBUG_EXIT
from kvmpy.testing.asm import assemble
from kvmpy.testing.images import ElfSegment, elf_image, elf_note
from kvmpy.units import MIB

GUESTS = Path(__file__).parent.parent / "guests"
SOON = 20  # Seconds after which something that has to happen counts as failed.
MEMORY = 8 * MIB
CODE = 2 * MIB
MODULE = b"module".ljust(4100, b".")


def source(name, bits, origin=CODE, **constants):
    return assemble((GUESTS / f"{name}.asm").read_text(), bits=bits, origin=origin, **constants)


def failed_check(kernel, protocol="auto", **options):
    """Runs the guest; the number of the check that failed, 42 for none."""
    config = MachineConfig(bytes(kernel), protocol=protocol, memory=MEMORY, debug_exit=0xF4, **options)
    with build(config) as machine:
        outcome = machine.run(SOON)
        assert outcome.reason == DEBUG_EXIT, (outcome.message, outcome.details)
        return outcome.status >> 1


def pvh_note(size):
    return elf_note(b"Xen", 18, CODE.to_bytes(size, "little"))


@pytest.mark.parametrize(
    ("name", "protocol", "origin"),
    [
        ("real", "flat16", 0x7C00),
        ("protected", "flat32", MIB),
        ("long", "flat64", MIB),
        ("long", "flat64@0x300000", 3 * MIB),
    ],
)
def test_flat(name, protocol, origin):
    assert failed_check(source(name, int(protocol[4:6]), origin), protocol) == 42


@pytest.mark.parametrize("bits", [32, 64])
def test_pvh(bits):
    code = source("pvh", 32, MEMORY=MEMORY)
    kernel = elf_image([ElfSegment(CODE, code)], bits=bits, notes=pvh_note(bits // 8))
    assert failed_check(kernel, initrd=MODULE, append="hello") == 42


@pytest.mark.parametrize("bits", [32, 64])
def test_multiboot_elf(bits):
    code = source("multiboot", 32, MEMORY=MEMORY, FLAGS=3)
    kernel = elf_image([ElfSegment(CODE, code, memsz=len(code) + 0x2000)], bits=bits, entry=code.labels["start"])
    assert failed_check(kernel, initrd=MODULE, append="hello") == 42


def test_multiboot_with_addresses_in_its_header():
    code = source("multiboot", 32, MEMORY=MEMORY, FLAGS=0x10003)
    assert failed_check(code + b"not loaded", initrd=MODULE, append="hello") == 42


@pytest.mark.parametrize("bits", [32, 64])
def test_linux(bits):
    code = source(f"linux{bits}", bits)
    kernel = elf_image([ElfSegment(CODE, code)], bits=bits)
    assert failed_check(kernel, initrd=MODULE, append="hello") == 42


def test_a_guest_that_finds_something_amiss_says_what():
    assert failed_check(source("multiboot", 32, MEMORY=MEMORY + MIB, FLAGS=0x10003), initrd=MODULE, append="hello") == 5
