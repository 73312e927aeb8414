"""Fuzzes the multiboot loader: `python tests/fuzz/fuzz_multiboot.py -runs=100000`."""

from __future__ import annotations

from kvmpy.testing.fuzz import fuzz, instrumented

with instrumented():
    from kvmpy.boot.multiboot import load_multiboot
    from kvmpy.boot.place import OURS
    from kvmpy.errors import KvmpyError
    from kvmpy.memory import GuestMemory
    from kvmpy.testing.images import ElfSegment, elf_image, multiboot_header
    from kvmpy.units import MIB

CORPUS = [
    elf_image([ElfSegment(MIB, multiboot_header() + b"code", memsz=0x2000)], bits=32),
    elf_image([ElfSegment(MIB, multiboot_header(7) + b"code")]),
    multiboot_header(0x10003, (MIB, MIB, MIB + 36, MIB + 0x1000, MIB + 32)) + b"code",
    b"before.." + multiboot_header(0x10003, (MIB + 8, MIB, 0, 0, MIB + 40)) + b"code",
]


def one_input(data: bytes) -> None:
    """No file raises anything but `KvmpyError`, and none is entered outside of RAM or in what is ours."""
    with GuestMemory(4 * MIB) as memory:
        try:
            entry = load_multiboot(memory, memoryview(data), cmdline="text")
        except KvmpyError:
            return
        memory.region_of(entry.rip, 1)
        assert not any(low <= entry.rip < high for low, high, _ in OURS)


if __name__ == "__main__":
    fuzz(one_input, CORPUS)
