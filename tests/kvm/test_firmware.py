"""Machines that start in firmware: code at the reset vector, and Debian's SeaBIOS and qboot."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.errors import ConfigError
from kvmpy.kvm.capabilities import KVM_CAP_READONLY_MEM
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import DEBUG_EXIT, Outcome
from kvmpy.testing.asm import assemble
from kvmpy.testing.guests import firmware
from kvmpy.testing.images import HEADER_END, bzimage
from kvmpy.units import KIB, MIB
from kvmpy.x86.firmware import FIRMWARE_END

SEABIOS = Path("/usr/share/seabios")  # Debian's package seabios
QBOOT = Path("/usr/share/qemu/qboot.rom")  # Debian's package qemu-system-data

SOON = 120  # Seconds after which what has to happen counts as failed.
EXIT_PORT = 0xF4


def image(path):
    if not path.exists():
        # Where KVM is required, so are the packages that the tests need.
        (pytest.fail if os.environ.get("KVMPY_REQUIRE_KVM") else pytest.skip)(f"{path} is not installed")
    return path.read_bytes()


class Terminal:
    """The two ends of a machine's console that are ours."""

    def __init__(self):
        self.guest_input, self._keys = os.pipe()
        self._screen, self.guest_output = os.pipe()
        self.text = b""

    def type(self, keys):
        os.write(self._keys, keys)

    def wait_for(self, text):
        """Reads until `text` is there; what was read is in `text`."""
        deadline = time.monotonic() + SOON
        while text not in self.text:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._screen], [], [], left)[0]:
                pytest.fail(f"{text!r} did not come, only {self.text!r}")
            self.text += os.read(self._screen, 4096)

    def close(self):
        for fd in (self.guest_input, self._keys, self._screen, self.guest_output):
            os.close(fd)


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    made.close()


@pytest.fixture
def machine(terminal):
    """Makes machines with `rom` as firmware."""
    machines = []

    def make(rom, memory=2 * MIB, **options):
        config = MachineConfig(firmware=rom, memory=memory, debug_exit=EXIT_PORT, **options)
        machines.append(build(config, input_fd=terminal.guest_input, output_fd=terminal.guest_output))
        return machines[-1]

    yield make
    for made in machines:
        made.close()


def rom(source):
    """64 KiB of firmware: 16-bit code from its start, and a jump there on the reset vector; the rest is 0xf4."""
    code = assemble(source, bits=16, origin=0)
    jump = b"\xe9" + (-0xFFF3 & 0xFFFF).to_bytes(2, "little")
    return bytes(code).ljust(0xFFF0, b"\xf4") + jump.ljust(16, b"\xf4")


def exit_value(made):
    """What the guest wrote to the exit port."""
    outcome: Outcome = made.run(SOON)
    assert outcome.reason == DEBUG_EXIT, outcome
    return outcome.status >> 1


def test_the_processor_starts_in_the_firmware(machine):
    assert exit_value(machine(firmware(port=EXIT_PORT, value=0x2A))) == 0x2A


@pytest.mark.parametrize("protocol", ["flat16", "linux"])
def test_a_kernel_that_is_no_bzimage_is_refused(machine, protocol):
    with pytest.raises(ConfigError, match="kernel: firmware starts a bzImage"):
        machine(rom("hlt"), kernel=b"\xf4", protocol=protocol)


def test_the_rom_cannot_be_written(machine, system):
    if not system.check_extension(KVM_CAP_READONLY_MEM):
        pytest.skip("this KVM has no read-only memory")
    made = machine(rom("mov byte [0x100], 0x55\n mov al, [0x100]\n shr al, 1\n out 0xf4, al\n hlt"))
    vcpu = made.vcpus[0].vcpu
    sregs = vcpu.sregs()
    sregs.ds.base = sregs.cs.base  # the top 64 KiB, which no selector reaches in real mode
    vcpu.set_sregs(sregs)
    assert exit_value(made) == 0xF4 >> 1
    assert made.vcpus[0].stats.mmio == {FIRMWARE_END - 64 * KIB + 0x100: 1}


def test_the_copy_below_1_mib_is_ram(machine):
    made = machine(
        rom("""
        mov ax, 0xf000
        mov ds, ax
        mov al, [0x100]
        inc byte [0x100]
        sub al, [0x100]
        neg al
        out 0xf4, al
        hlt
        """)
    )
    assert exit_value(made) == 1
    assert made.memory.read(0xF0100, 1) == b"\xf5"


def test_firmware_finds_the_pci_bus(machine):
    made = machine(
        rom("""
        mov dx, 0xcf8
        mov eax, 0x80000000
        out dx, eax
        mov dx, 0xcfc
        in eax, dx
        xor eax, 0x00081b36
        jnz wrong
        mov dx, 0xcf8
        mov eax, 0x8000f800
        out dx, eax
        mov dx, 0xcfc
        in eax, dx
        inc eax
        jnz wrong
        mov al, 0x2a
        out 0xf4, al
wrong:  out 0xf4, al
        hlt
        """)
    )
    assert exit_value(made) == 0x2A


def test_a_large_image_shows_its_last_128_kib_below_1_mib(machine):
    made = machine(bytes([1]) * (384 * KIB) + bytes([2]) * (128 * KIB))
    assert made.memory.read(MIB - 128 * KIB - 1, 2) == b"\x00\x02"


def test_an_image_that_fits_shows_as_a_whole(machine):
    made = machine(bytes([1]) * (256 * KIB))
    assert made.memory.read(0xC0000 - 1, 2) == b"\x00\x01"


@pytest.mark.parametrize("size", [1, 64 * KIB - 1, 96 * KIB])
def test_a_size_that_no_rom_has_is_refused(machine, size):
    with pytest.raises(ConfigError, match="firmware"):
        machine(bytes(size))


def test_the_largest_image_fits(machine):
    assert machine(bytes(16 * MIB - 1) + b"\xf4").memory.read(MIB - 1, 1) == b"\xf4"


@pytest.mark.full
@pytest.mark.parametrize("name", ["bios.bin", "bios-microvm.bin"])
def test_other_builds_of_seabios_find_nothing_to_boot(machine, terminal, name):
    made = machine(image(SEABIOS / name), 32 * MIB)
    made.start()
    terminal.wait_for(b"No bootable device")
    assert b"SeaBIOS (version" in terminal.text


def test_seabios_shows_its_boot_menu(machine, terminal):
    machine(image(SEABIOS / "bios-256k.bin"), 32 * MIB).start()
    terminal.wait_for(b"Press ESC for boot menu")
    terminal.type(b"\x1b")
    terminal.wait_for(b"Select boot device")


def test_seabios_finds_the_machine_and_nothing_to_boot(machine, terminal):
    made = machine(image(SEABIOS / "bios-256k.bin"), 32 * MIB, vcpus=2)
    made.start()
    terminal.wait_for(b"No bootable device")
    assert b"SeaBIOS (version" in terminal.text
    for found in (b"Found QEMU fw_cfg", b"Found 1 PCI devices", b"Found 2 cpu(s)"):
        assert found in made.firmware_log
    area = made.memory.read(0xE0000, 0x20000)
    root = area[area.index(b"RSD PTR ") :][:36]
    assert sum(root) & 0xFF == 0
    xsdt = int.from_bytes(root[24:32], "little")
    table = made.memory.read(xsdt, int.from_bytes(made.memory.read(xsdt + 4, 4), "little"))
    assert table[:4] == b"XSDT"
    assert sum(table) & 0xFF == 0
    first = int.from_bytes(table[36:44], "little")
    assert made.memory.read(first, 4) == b"FACP"


def test_qboot_starts_a_kernel(machine):
    code = assemble("mov al, 0x2a\n out 0xf4, al\n hlt", bits=16, origin=HEADER_END)
    kernel = bytearray(bzimage(b"protected mode"))
    kernel[HEADER_END : HEADER_END + len(code)] = code
    # Bytes that are no text come from our own command line as they are, and go on as they are.
    made = machine(image(QBOOT), 32 * MIB, kernel=bytes(kernel), initrd=b"the initrd", append="quiet \udcff")
    assert exit_value(made) == 0x2A
    # Loaded where a bzImage belongs.
    assert made.memory.read(MIB + 0x400, 14) == b"protected mode"
