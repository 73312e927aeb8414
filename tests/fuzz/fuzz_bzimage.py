"""Fuzzes the loading of whole kernels: `python tests/fuzz/fuzz_bzimage.py -runs=100000`."""

from __future__ import annotations

import gzip

from kvmpy.testing.fuzz import fuzz, instrumented

with instrumented():
    from kvmpy.boot import load
    from kvmpy.errors import KvmpyError
    from kvmpy.memory import GuestMemory
    from kvmpy.testing.images import ElfSegment, bzimage, elf_image
    from kvmpy.units import MIB
    from kvmpy.x86 import layout

VMLINUX = elf_image([ElfSegment(2 * MIB, b"code"), ElfSegment(3 * MIB, b"data", memsz=0x2000)])
CORPUS = [
    VMLINUX,
    bzimage(VMLINUX, pref_address=2 * MIB, init_size=MIB),
    bzimage(gzip.compress(VMLINUX), pref_address=2 * MIB, init_size=MIB),
    bzimage(b"unheard of", version=0x0205),
]


def one_input(data: bytes) -> None:
    """No kernel raises anything but `KvmpyError`, and what is loaded is entered in the machine's RAM."""
    with GuestMemory(4 * MIB) as memory:
        try:
            entry = load(memory, data, initrd=b"initrd", rng=bytes)
            assert layout.HIGH_MEMORY <= entry.rip < 4 * MIB
        except KvmpyError:
            pass


if __name__ == "__main__":
    fuzz(one_input, CORPUS)
