from __future__ import annotations

import mmap
import os

import pytest

from kvmpy.boot import load
from kvmpy.boot.source import looks_like, open_image
from kvmpy.errors import ImageError
from kvmpy.memory import GuestMemory
from kvmpy.testing.images import ElfSegment, bzimage, elf_image
from kvmpy.units import MIB

VMLINUX = elf_image([ElfSegment(16 * MIB, b"kernel code")])


@pytest.fixture
def memory():
    with GuestMemory(32 * MIB) as memory:
        yield memory


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "vmlinux"
    path.write_bytes(VMLINUX)
    return path


@pytest.mark.parametrize("convert", [str, lambda path: path], ids=["str", "path"])
def test_from_a_file(memory, kernel, convert):
    assert load(memory, convert(kernel)).rip == 16 * MIB
    assert memory.read(16 * MIB, 11) == b"kernel code"


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_from_bytes(memory, convert):
    load(memory, convert(VMLINUX), initrd=convert(b"initrd"))
    assert memory.read(16 * MIB, 11) == b"kernel code"
    assert memory.read(32 * MIB - 4096, 6) == b"initrd"


def test_from_a_mapping(memory, kernel):
    with kernel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        load(memory, mapping)
    assert memory.read(16 * MIB, 11) == b"kernel code"


def test_bzimage_is_recognised(memory):
    assert load(memory, bzimage(VMLINUX)).description.startswith("bzImage")


def test_no_file_stays_open(memory, kernel):
    before = set(os.listdir("/proc/self/fd"))
    load(memory, kernel, initrd=kernel)
    assert set(os.listdir("/proc/self/fd")) == before


def test_error_names_the_file(memory, tmp_path):
    path = tmp_path / "broken"
    path.write_bytes(VMLINUX[:60])
    with pytest.raises(ImageError, match=r"^the kernel '.*/broken' cannot be booted: .*program headers"):
        load(memory, path)


def test_file_that_is_no_kernel(memory, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary,\n")
    with pytest.raises(
        ImageError, match=r"notes.txt' cannot be booted: it is neither a bzImage nor an ELF file; it looks like text$"
    ):
        load(memory, path)


def test_bytes_that_are_no_kernel(memory):
    with pytest.raises(
        ImageError, match="the kernel cannot be booted: it is neither a bzImage nor an ELF file; it looks like a script"
    ):
        load(memory, b"#!/bin/sh\n")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x1f\x8b\x08", "gzip"),
        (b"070701" + b"0" * 104, "initramfs"),
        (bytes(257) + b"ustar", "tar"),
        (b"QFI\xfb", "qcow2"),
        (b"MZ" + bytes(54) + b"ARM\x64", "64-bit ARM"),
        (b"MZ" + bytes(600), "EFI"),
        (bytes(510) + b"\x55\xaa", "boot sector"),
        (bytes(600), "zeros"),
        (b"", "empty"),
        (b"\x90\x90\x90\xf4", "90 90 90 f4"),
    ],
)
def test_looks_like(data, what):
    assert what in looks_like(memoryview(data))


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"the initrd '.*/none' cannot be opened: No such file"):
        open_image(tmp_path / "none", "initrd")


def test_empty_file(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match="is empty"):
        open_image(tmp_path / "empty", "kernel")


def test_folder(tmp_path):
    with pytest.raises(ImageError, match="not a regular file"):
        open_image(tmp_path, "kernel")


def test_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="not a regular file"):
        open_image(tmp_path / "fifo", "kernel")


def test_device_is_refused():
    with pytest.raises(ImageError, match="not a regular file"):
        open_image("/dev/zero", "kernel")


def test_path_with_a_nul():
    with pytest.raises(ImageError, match="not a path"):
        open_image("a\0b", "kernel")
