"""A virtio device as a PCI function of a whole machine: its BAR on the bus, kicks by ioeventfd, messages by irqfd."""

from __future__ import annotations

import os

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.devices.virtio.rng import Rng
from kvmpy.errors import ConfigError
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import DEBUG_EXIT
from kvmpy.machine.virtio import VIRTIO_MMIO, add_virtio
from kvmpy.testing.asm import assemble
from kvmpy.testing.images import ElfSegment, elf_image, elf_note
from kvmpy.units import MIB

SOON = 20  # Seconds after which something that has to happen counts as failed.
CODE = 2 * MIB
RINGS = 3 * MIB
BUFFER = 0x301000
BAR = 0xC0010000

# A driver for the entropy device in slot 1: moves the BAR to BAR, gives one buffer of 8 bytes, notifies, waits for the
# used index and for the message, vector 0x41 to this CPU, in its local APIC's request register, and writes the number
# of bytes that were given to the debug exit port.
DRIVER = """
        mov     dx, 0xcf8
        mov     eax, 0x80000810
        out     dx, eax
        mov     dx, 0xcfc
        mov     eax, BAR + 0x100000
        out     dx, eax
        mov     dx, 0xcf8
        mov     eax, 0x80000804
        out     dx, eax
        mov     dx, 0xcfc
        mov     eax, 2
        out     dx, eax
        mov     dx, 0xcf8
        mov     eax, 0x80000810
        out     dx, eax
        mov     dx, 0xcfc
        mov     eax, BAR
        out     dx, eax
        mov     dx, 0xcf8
        mov     eax, 0x80000840         ; the first capability is MSI-X: on
        out     dx, eax
        mov     dx, 0xcfe
        mov     ax, 0x8000
        out     dx, ax

        mov     ebx, BAR
        mov     dword [ebx + 0x8010], 0xfee00000
        mov     dword [ebx + 0x8014], 0
        mov     dword [ebx + 0x8018], 0x41
        mov     dword [ebx + 0x801c], 0
        mov     byte [ebx + 0x14], 1
        mov     byte [ebx + 0x14], 3
        mov     dword [ebx + 8], 1
        mov     dword [ebx + 12], 1             ; VIRTIO_F_VERSION_1
        mov     byte [ebx + 0x14], 11
        mov     word [ebx + 0x18], 8
        mov     word [ebx + 0x1a], 1
        mov     dword [ebx + 0x20], RINGS
        mov     dword [ebx + 0x28], RINGS + 0x80
        mov     dword [ebx + 0x30], RINGS + 0x100
        mov     word [ebx + 0x1c], 1
        mov     byte [ebx + 0x14], 15
        mov     edi, RINGS
        mov     dword [edi], BUFFER
        mov     dword [edi + 8], 8
        mov     dword [edi + 12], 2             ; the device writes
        mov     dword [edi + 0x80], 0x10000     ; one chain, the first descriptor's
        mov     esi, 0xfee00000
        mov     dword [esi + 0xf0], 0x1ff       ; the local APIC: on
        mov     word [ebx + 0x3000], 0
wait:   cmp     dword [edi + 0x100], 0x10000
        jne     wait
irr:    test    dword [esi + 0x220], 2          ; interrupt request 0x41
        jz      irr
        mov     eax, [edi + 0x108]
        out     0xf4, al
        hlt
"""


@pytest.fixture
def config():
    code = assemble(DRIVER, bits=32, origin=CODE, BAR=BAR, RINGS=RINGS, BUFFER=BUFFER)
    note = elf_note(b"Xen", 18, CODE.to_bytes(4, "little"))
    kernel = bytes(elf_image([ElfSegment(CODE, code)], bits=32, notes=note))
    return MachineConfig(kernel, memory=8 * MIB, debug_exit=0xF4, rng=True, virtio="pci")


def test_a_driver_gets_its_bytes_and_its_message_and_its_kick_is_no_exit(config):
    with build(config) as machine:
        outcome = machine.run(SOON)
        assert (outcome.reason, outcome.status >> 1) == (DEBUG_EXIT, 8), outcome.message
        assert machine.memory.read(BUFFER, 8) != bytes(8)
        assert machine.pc.messages.lost == 0
        accesses = machine.vcpus[0].stats.mmio
        assert BAR + 0x14 in accesses
        assert BAR + 0x3000 not in accesses


def test_nothing_is_left_behind(config):
    before = sorted(os.listdir("/proc/self/fd"))
    with build(config) as machine:
        machine.run(SOON)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_bar_over_another_device_is_not_seen(config):
    with build(config) as machine:
        function = machine.pc.pci.functions()[1, 0]
        function.write_config(0x10, memoryview(bytearray((0xE0000000).to_bytes(4, "little"))))
        function.write_config(4, memoryview(bytearray(b"\x02\x00")))
        assert machine.mmio.find(0xE0000000).name == "pci-ecam"
        function.write_config(0x10, memoryview(bytearray(BAR.to_bytes(4, "little"))))
        assert machine.mmio.find(BAR).device.device.NAME == "rng"


def test_each_device_has_a_slot_and_the_pins_run_out_before_the_slots(config):
    config.rng = False
    with build(config) as machine:
        for _ in range(31):
            add_virtio(machine, Rng())
        assert sorted(machine.pc.pci.functions()) == [(slot, 0) for slot in range(32)]
        pins = [gsi for _, _, gsi in machine.pc.platform.pci.routes]
        assert 0 < len(pins) == len(set(pins)) < 31
        with pytest.raises(ConfigError, match="slots are taken"):
            add_virtio(machine, Rng())


def test_no_device_over_mmio_is_there(config):
    with build(config) as machine:
        assert machine.mmio.find(VIRTIO_MMIO) is None
        assert machine.pc.platform.virtio_mmio == ()
