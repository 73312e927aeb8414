"""Firmware: code at the reset vector, and Debian's SeaBIOS and qboot on fw_cfg and PCI."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from kvmpy.bus import mmio_bus, pio_bus
from kvmpy.devices.firmware import SEABIOS_DEBUG_PORT, firmware_config
from kvmpy.devices.fw_cfg import FW_CFG_PORT, FW_CFG_PORTS
from kvmpy.devices.legacy.cmos import Cmos
from kvmpy.devices.legacy.debug import DebugConsole
from kvmpy.devices.legacy.i8042 import I8042
from kvmpy.devices.legacy.ports import SystemControlA
from kvmpy.devices.legacy.serial import Serial
from kvmpy.devices.pci.bus import PCI_CONFIG_PORT, PCI_CONFIG_PORTS, ConfigPorts, PciBus
from kvmpy.devices.pci.host import host_bridge
from kvmpy.errors import ConfigError
from kvmpy.irq import EdgeLine
from kvmpy.kvm.capabilities import KVM_CAP_READONLY_MEM
from kvmpy.kvm.exits import KVM_EXIT_HLT, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_MMIO
from kvmpy.memory import GuestMemory
from kvmpy.testing.asm import assemble
from kvmpy.testing.guests import firmware
from kvmpy.testing.images import HEADER_END, SETUP_SECTS, bzimage
from kvmpy.units import KIB, MIB
from kvmpy.x86.acpi.platform import AcpiPlatform
from kvmpy.x86.cpuid import cpuid_for
from kvmpy.x86.firmware import FIRMWARE_END, load_firmware
from kvmpy.x86.layout import IDENTITY_MAP, TSS
from kvmpy.x86.table_loader import acpi_files

SEABIOS = Path("/usr/share/seabios")  # Debian's package seabios
QBOOT = Path("/usr/share/qemu/qboot.rom")  # Debian's package qemu-system-data

COM1, COM1_IRQ, KEYBOARD_IRQ = 0x3F8, 4, 1
SOON = 120  # Seconds after which what has to happen counts as failed.


def image(path):
    if not path.exists():
        # Where KVM is required so are the packages that the tests need.
        (pytest.fail if os.environ.get("KVMPY_REQUIRE_KVM") else pytest.skip)(f"{path} is not installed")
    return path.read_bytes()


class Board:
    """A PC of parts: memory with firmware, buses, and vCPUs in the state in which KVM resets them."""

    def __init__(self, system, rom, memory, vcpus=1, irqchip=False):
        self.memory = GuestMemory(memory)
        self.vm = system.create_vm()
        self.pio, self.mmio = pio_bus(), mmio_bus()
        for slot, region in enumerate(self.memory.regions):
            self.vm.set_memory_region(slot, region.start, region.buffer)
        load_firmware(self.vm, self.memory, rom, len(self.memory.regions))
        self.vm.set_identity_map_address(IDENTITY_MAP)
        self.vm.set_tss_address(TSS)
        self.lines = []
        if irqchip:
            self.vm.create_irqchip()
            self.vm.create_pit()
        self.vcpus = [self.vm.create_vcpu(index) for index in range(vcpus)]
        for index, vcpu in enumerate(self.vcpus):
            vcpu.set_cpuid(cpuid_for(system.supported_cpuid(), index, vcpus))
        self.over = threading.Event()
        self.ends = []
        self.stores = []

    def line(self, irq):
        self.lines.append(EdgeLine(self.vm, irq))
        return self.lines[-1]

    def run(self, seconds=SOON):
        """Runs all vCPUs until one ends the guest or `over` is set; whether that came in time."""
        threads = [threading.Thread(target=self._run, args=(vcpu,)) for vcpu in self.vcpus]
        for thread in threads:
            thread.start()
        in_time = self.over.wait(seconds)
        self.over.set()
        for vcpu, thread in zip(self.vcpus, threads, strict=True):
            while thread.is_alive():
                vcpu.kick()
                thread.join(0.1)
        return in_time

    def _run(self, vcpu):
        vcpu.adopt_thread(threading.get_native_id())
        try:
            while not self.over.is_set():
                reason = vcpu.run()
                if reason == KVM_EXIT_IO:
                    access = vcpu.exit.io
                    move = self.pio.write if access.is_write else self.pio.read
                    for at in range(0, access.size * access.count, access.size):
                        move(access.port, access.data[at : at + access.size])
                elif reason == KVM_EXIT_MMIO:
                    access = vcpu.exit.mmio
                    if access.is_write:
                        self.stores.append((access.address, bytes(access.data)))
                    (self.mmio.write if access.is_write else self.mmio.read)(access.address, access.data)
                elif reason == KVM_EXIT_INTR:
                    vcpu.immediate_exit = False
                else:
                    self.ends.append(reason)
                    self.over.set()
        except Exception as error:
            self.ends.append(error)
            self.over.set()
        finally:
            vcpu.adopt_thread(0)

    def close(self):
        for part in (*self.lines, *self.vcpus, self.vm, self.memory):
            part.close()


class Screen:
    """What the guest prints; `on(text, do)` calls `do` when `text` is there."""

    def __init__(self):
        self.text = b""
        self._waiting = []

    def on(self, text, do):
        self._waiting.append((text, do))

    def write(self, data):
        self.text += bytes(data)
        for pair in self._waiting[:]:
            if pair[0] in self.text:
                self._waiting.remove(pair)
                pair[1]()


@pytest.fixture
def board(system):
    boards = []

    def make(rom, memory=2 * MIB, **options):
        boards.append(Board(system, rom, memory, **options))
        return boards[-1]

    yield make
    for made in boards:
        made.close()


@pytest.fixture
def pc(board):
    """Makes a board with a PC's chips, fw_cfg and PCI; what firmware says is on `debug` and `serial`."""

    def make(rom, vcpus=1, **options):
        made = board(rom, 32 * MIB, vcpus=vcpus, irqchip=True)
        made.debug, made.serial = Screen(), Screen()
        made.uart = Serial(made.line(COM1_IRQ), made.serial.write)
        made.fw_cfg = firmware_config(made.memory, vcpus, **options)
        made.pci = PciBus()
        made.pci.add(0, host_bridge())
        keyboard = I8042(made.over.set, irq=made.line(KEYBOARD_IRQ))
        for start, length, device in (
            (COM1, 8, made.uart),
            (SEABIOS_DEBUG_PORT, 1, DebugConsole(made.debug.write)),
            (FW_CFG_PORT, FW_CFG_PORTS, made.fw_cfg),
            (PCI_CONFIG_PORT, PCI_CONFIG_PORTS, ConfigPorts(made.pci, made.over.set)),
            (0x60, 1, keyboard.data_port),
            (0x64, 1, keyboard.command_port),
            (0x70, 2, Cmos(lambda: 1_700_000_000.0, memory_below_4g=made.memory.size)),
            (0x92, 1, SystemControlA(made.over.set)),
        ):
            made.pio.add(start, length, device)
        return made

    return make


class Latch:
    """A port that keeps what was written to it, in order."""

    def __init__(self):
        self.values = []

    def read(self, offset, data):
        data[:] = bytes(len(data))

    def write(self, offset, data):
        self.values.append(int.from_bytes(data, "little"))


def rom(source):
    """64 KiB of firmware: 16-bit code from its start, and a jump there on the reset vector."""
    code = assemble(source, bits=16, origin=0)
    jump = b"\xe9" + (-0xFFF3 & 0xFFFF).to_bytes(2, "little")
    return bytes(code).ljust(0xFFF0, b"\xf4") + jump.ljust(16, b"\xf4")


def test_the_processor_starts_in_the_firmware(board):
    made = board(firmware(port=0xF4, value=0x2A))
    latch = Latch()
    made.pio.add(0xF4, 1, latch)
    assert made.run()
    assert made.ends == [KVM_EXIT_HLT]
    assert latch.values == [0x2A]


def test_the_rom_cannot_be_written(board, system):
    if not system.check_extension(KVM_CAP_READONLY_MEM):
        pytest.skip("this KVM has no read-only memory")
    made = board(rom("mov byte [0x100], 0x55\n mov al, [0x100]\n out 0xf4, al\n hlt"))
    sregs = made.vcpus[0].sregs()
    sregs.ds.base = sregs.cs.base  # the top 64 KiB, which no selector reaches in real mode
    made.vcpus[0].set_sregs(sregs)
    latch = Latch()
    made.pio.add(0xF4, 1, latch)
    assert made.run()
    assert made.ends == [KVM_EXIT_HLT]
    assert latch.values == [0xF4]
    assert made.stores == [(FIRMWARE_END - 64 * KIB + 0x100, b"\x55")]


def test_the_copy_below_1_mib_is_ram(board):
    made = board(
        rom("""
        mov ax, 0xf000
        mov ds, ax
        mov al, [0x100]
        out 0xf4, al
        mov byte [0x100], 0x55
        mov al, [0x100]
        out 0xf4, al
        hlt
        """)
    )
    latch = Latch()
    made.pio.add(0xF4, 1, latch)
    assert made.run()
    assert latch.values == [0xF4, 0x55]
    assert made.stores == []


def test_a_large_image_shows_its_last_128_kib_below_1_mib(board):
    made = board(bytes([1]) * (384 * KIB) + bytes([2]) * (128 * KIB))
    assert made.memory.read(MIB - 128 * KIB - 1, 2) == b"\x00\x02"


def test_an_image_that_fits_shows_as_a_whole(board):
    made = board(bytes([1]) * (256 * KIB))
    assert made.memory.read(0xC0000 - 1, 2) == b"\x00\x01"


@pytest.mark.parametrize("size", [0, 1, 64 * KIB - 1, 96 * KIB, 16 * MIB + 64 * KIB])
def test_a_size_that_no_rom_has_is_refused(board, size):
    with pytest.raises(ConfigError, match="firmware"):
        board(bytes(size))


def test_the_largest_image_fits(board):
    assert board(bytes(16 * MIB - 1) + b"\xf4").memory.read(MIB - 1, 1) == b"\xf4"


@pytest.mark.parametrize("name", ["bios.bin", "bios-256k.bin", "bios-microvm.bin"])
def test_seabios_finds_nothing_to_boot(pc, name):
    made = pc(image(SEABIOS / name), boot_menu=False)
    made.debug.on(b"No bootable device", made.over.set)
    assert made.run(), made.debug.text
    assert made.ends == []
    assert b"SeaBIOS (version" in made.debug.text
    assert b"Found QEMU fw_cfg" in made.debug.text
    assert b"Found 1 PCI devices" in made.debug.text


def test_seabios_shows_its_boot_menu_on_the_serial_console(pc):
    made = pc(image(SEABIOS / "bios-256k.bin"), serial_console=COM1)
    made.serial.on(b"Press ESC", lambda: made.uart.receive(b"\x1b"))
    made.serial.on(b"Select boot device", made.over.set)
    assert made.run(), (made.serial.text, made.debug.text)
    assert b"SeaBIOS (version" in made.serial.text


def test_seabios_starts_all_cpus_and_installs_the_acpi_tables(pc):
    made = pc(image(SEABIOS / "bios-256k.bin"), vcpus=2, boot_menu=False, files=acpi_files(AcpiPlatform([0, 1])))
    made.debug.on(b"No bootable device", made.over.set)
    assert made.run(), made.debug.text
    assert b"Found 2 cpu(s)" in made.debug.text
    area = made.memory.read(0xE0000, 0x20000)
    root = area[area.index(b"RSD PTR ") :][:36]
    assert sum(root) & 0xFF == 0
    xsdt = int.from_bytes(root[24:32], "little")
    length = int.from_bytes(made.memory.read(xsdt + 4, 4), "little")
    table = made.memory.read(xsdt, length)
    assert table[:4] == b"XSDT"
    assert sum(table) & 0xFF == 0
    first = int.from_bytes(table[36:44], "little")
    assert made.memory.read(first, 4) == b"FACP"


def test_qboot_starts_a_kernel(pc):
    code = assemble("mov al, 0x2a\n out 0xf4, al\n hlt", bits=16, origin=HEADER_END)
    kernel = bytearray(bzimage(b"protected mode"))
    kernel[HEADER_END : HEADER_END + len(code)] = code
    setup = (SETUP_SECTS + 1) * 512
    made = pc(image(QBOOT))
    made.fw_cfg.add_linux(bytes(kernel[:setup]), bytes(kernel[setup:]), cmdline="console=ttyS0")
    latch = Latch()
    latch.write = lambda offset, data: (latch.values.append(data[0]), made.over.set())
    made.pio.add(0xF4, 1, latch)
    assert made.run()
    assert latch.values == [0x2A]
    assert made.ends == []
    # Loaded where a bzImage belongs.
    assert made.memory.read(MIB + 0x400, 14) == b"protected mode"
