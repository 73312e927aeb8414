"""A virtio device in a whole machine: a driver of a few instructions, KVM's eventfds, the reactor."""

from __future__ import annotations

import os

import pytest

from kvmpy.boot import recognise
from kvmpy.config.machine import MachineConfig
from kvmpy.devices.virtio.rng import Rng
from kvmpy.errors import ConfigError
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import DEBUG_EXIT
from kvmpy.machine.virtio import VIRTIO_MMIO, add_virtio_mmio, command_line_words
from kvmpy.testing.asm import assemble
from kvmpy.testing.images import ElfSegment, elf_image, elf_note
from kvmpy.units import MIB

SOON = 20  # Seconds after which something that has to happen counts as failed.
CODE = 2 * MIB
RINGS = 3 * MIB
BUFFER = 0x301000

# A driver for an entropy device: sets it up with one buffer of 8 bytes at BUFFER, notifies, waits for the used index,
# and writes the number of bytes that were given to the debug exit port.
DRIVER = """
        mov     ebx, BASE
        mov     dword [ebx + 0x70], 1
        mov     dword [ebx + 0x70], 3
        mov     dword [ebx + 0x24], 1
        mov     dword [ebx + 0x20], 1           ; VIRTIO_F_VERSION_1
        mov     dword [ebx + 0x70], 11
        mov     dword [ebx + 0x38], 8
        mov     dword [ebx + 0x80], RINGS
        mov     dword [ebx + 0x90], RINGS + 0x80
        mov     dword [ebx + 0xa0], RINGS + 0x100
        mov     dword [ebx + 0x44], 1
        mov     dword [ebx + 0x70], 15
        mov     edi, RINGS
        mov     dword [edi], BUFFER
        mov     dword [edi + 8], 8
        mov     dword [edi + 12], 2             ; the device writes
        mov     dword [edi + 0x80], 0x10000     ; one chain, the first descriptor's
        mov     dword [ebx + 0x50], 0
wait:   cmp     dword [edi + 0x100], 0x10000
        jne     wait
        mov     eax, [edi + 0x108]
        out     0xf4, al
        hlt
"""


def pvh(source, **constants):
    code = assemble(source, bits=32, origin=CODE, **constants)
    return bytes(elf_image([ElfSegment(CODE, code)], bits=32, notes=elf_note(b"Xen", 18, CODE.to_bytes(4, "little"))))


@pytest.fixture
def config():
    return MachineConfig(
        pvh(DRIVER, BASE=VIRTIO_MMIO, RINGS=RINGS, BUFFER=BUFFER), memory=8 * MIB, debug_exit=0xF4, rng=True
    )


def test_a_driver_gets_its_bytes_and_its_kick_is_no_exit(config):
    with build(config) as machine:
        outcome = machine.run(SOON)
        assert (outcome.reason, outcome.status >> 1) == (DEBUG_EXIT, 8), outcome.message
        assert machine.memory.read(BUFFER, 8) != bytes(8)
        accesses = machine.vcpus[0].stats.mmio
        assert VIRTIO_MMIO + 0x70 in accesses
        assert VIRTIO_MMIO + 0x50 not in accesses


def test_nothing_is_left_behind(config):
    before = sorted(os.listdir("/proc/self/fd"))
    with build(config) as machine:
        machine.run(SOON)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_each_device_has_a_place_and_an_interrupt_of_its_own(config):
    config.rng = False
    with build(config) as machine:
        for _ in range(12):
            add_virtio_mmio(machine, Rng())
        places = machine.pc.platform.virtio_mmio
        assert len({address for address, _, _ in places}) == 12
        assert len({gsi for _, _, gsi in places}) == 12
        for _ in range(4):
            add_virtio_mmio(machine, Rng())
        with pytest.raises(ConfigError, match="no interrupt is left"):
            add_virtio_mmio(machine, Rng())


def test_only_a_kernel_that_knows_no_acpi_is_told_on_its_command_line(config):
    with build(config) as machine:
        told = command_line_words(machine, recognise(config.kernel))
        assert told == [f"virtio_mmio.device=4K@{VIRTIO_MMIO:#x}:5"]
        with_driver = pvh('hlt\ndb "LNRO0005"')
        assert command_line_words(machine, recognise(with_driver)) == []


def test_a_flat_guest_cannot_have_any():
    config = MachineConfig(b"\xf4", protocol="flat16", memory=MIB, rng=True)
    with pytest.raises(ConfigError, match="flat guest"):
        build(config)
