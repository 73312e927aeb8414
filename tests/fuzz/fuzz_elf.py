"""Fuzzes the ELF parser: `python tests/fuzz/fuzz_elf.py -runs=100000`."""

from __future__ import annotations

from kvmpy.testing.fuzz import fuzz, instrumented

with instrumented():
    from kvmpy.boot.elf import Elf
    from kvmpy.errors import KvmpyError
    from kvmpy.testing.images import ElfSegment, elf_image, elf_note
    from kvmpy.units import MIB

SEGMENTS = [ElfSegment(MIB, b"code"), ElfSegment(2 * MIB, b"data", memsz=0x2000)]
CORPUS = [
    elf_image(SEGMENTS),
    elf_image(SEGMENTS, bits=32),
    elf_image(SEGMENTS, notes=elf_note(b"Xen", 18, b"\0\0\x10\0")),
]


def one_input(data: bytes) -> None:
    """No file raises anything but `KvmpyError`, and none leads out of itself."""
    try:
        file = Elf(memoryview(data))
        for segment in file.segments:
            assert segment.offset + segment.filesz <= len(data)
        for note in file.notes():
            assert len(note.desc) <= len(data)
        assert file.start <= file.physical_entry < file.end
    except KvmpyError:
        pass


if __name__ == "__main__":
    fuzz(one_input, CORPUS)
