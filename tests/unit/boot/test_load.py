from __future__ import annotations

import contextlib
import mmap
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.boot import load, recognise
from kvmpy.boot.source import looks_like, open_image
from kvmpy.errors import ConfigError, ImageError, KvmpyError
from kvmpy.memory import GuestMemory
from kvmpy.testing.images import ElfSegment, bzimage, elf_image, elf_note, multiboot_header
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
    said = "notes.txt' cannot be booted: it is neither a bzImage nor an ELF file; it looks like text; for a flat binary"
    with pytest.raises(ImageError, match=said):
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


def marked(*, notes: bytes = b"", head: bytes = b"", bits: int = 64) -> bytes:
    """An ELF file with the marks of protocols in it."""
    return elf_image([ElfSegment(16 * MIB, head + b"code")], bits=bits, notes=notes)


XEN = elf_note(b"Xen", 18, (16 * MIB).to_bytes(8, "little"))
LINUX = elf_note(b"Linux", 0x101, bytes(4))
MULTIBOOT2 = struct.pack("<IIII", 0xE85250D6, 0, 16, -(0xE85250D6 + 16) & 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("image", "protocol", "is_linux"),
    [
        (bzimage(VMLINUX), "linux", True),
        (bzimage(VMLINUX, head=multiboot_header().ljust(1024)), "linux", True),
        (marked(), "linux", True),
        (marked(bits=32), "linux", True),
        (marked(notes=LINUX), "linux", True),
        (marked(notes=XEN + LINUX), "linux", True),
        (marked(notes=XEN), "pvh", False),
        (marked(notes=XEN, head=multiboot_header()), "multiboot", False),
        (marked(head=multiboot_header(), bits=32), "multiboot", False),
        (marked(head=MULTIBOOT2, notes=XEN), "pvh", False),
        (bytes(64) + multiboot_header(0x10003, (0, 0, 0, 0, 0)), "multiboot", False),
    ],
)
def test_the_protocol_is_found(image, protocol, is_linux):
    kernel = recognise(image)
    assert (kernel.protocol, kernel.is_linux) == (protocol, is_linux)


def test_what_is_asked_for_wins(memory):
    image = marked(notes=XEN + LINUX, head=multiboot_header())
    descriptions = [load(memory, image, protocol=name).description for name in ("linux", "pvh", "multiboot")]
    assert [description.split(",")[0] for description in descriptions] == ["vmlinux", "PVH", "multiboot"]


def test_linux_by_its_pvh_entry_is_linux_still():
    assert recognise(marked(notes=XEN + LINUX), "pvh").is_linux
    assert not recognise(marked(notes=XEN), "pvh").is_linux


@pytest.mark.parametrize("protocol", ["linux", "pvh", "multiboot"])
def test_a_file_that_is_not_of_the_protocol_asked_for(memory, protocol):
    with pytest.raises(ImageError, match=r"^the kernel cannot be booted: .*(not|no) "):
        load(memory, b"Dear diary,\n", protocol=protocol)


@pytest.mark.parametrize("protocol", ["", "flat", "flat8", "Linux", "flat32.5@1", "multiboot@0x100000", "multiboot2"])
def test_an_unknown_protocol_lists_the_known_ones(memory, protocol):
    with pytest.raises(ConfigError, match="none of auto, linux, multiboot, pvh, flat16, flat32, flat64"):
        load(memory, VMLINUX, protocol=protocol)


def test_multiboot_2_alone_is_said_to_be_unknown(memory):
    with pytest.raises(ImageError, match="multiboot 2"):
        load(memory, marked(head=MULTIBOOT2))


def test_what_was_recognised_is_loaded_without_another_look(memory, kernel):
    found = recognise(kernel)
    kernel.unlink()
    assert load(memory, found).rip == 16 * MIB


def multiboot_modules(memory, entry):
    count, address = struct.unpack("<II", memory.read(entry.registers["rbx"] + 20, 8))
    for start, end, text, _ in struct.iter_unpack("<IIII", memory.read(address, 16 * count)):
        yield memory.read(start, end - start), memory.read(text, 200).partition(b"\0")[0].decode()


def test_a_list_of_modules(memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "a,b"):
        (tmp_path / name).write_text(f"this is {name}")
    entry = load(memory, marked(head=multiboot_header()), initrd="one,two with arguments,a,,b")
    assert list(multiboot_modules(memory, entry)) == [
        (b"this is one", "one"),
        (b"this is two", "two with arguments"),
        (b"this is a,b", "a,b"),
    ]


def test_a_module_that_is_a_path_object_is_no_list(memory, tmp_path):
    path = tmp_path / "a b,c"
    path.write_text("module")
    entry = load(memory, marked(head=multiboot_header()), initrd=path)
    assert list(multiboot_modules(memory, entry)) == [(b"module", str(path))]


def test_a_module_that_is_not_there(memory):
    with pytest.raises(ImageError, match="the module '/none' cannot be opened"):
        load(memory, marked(head=multiboot_header()), initrd="/none arguments")


def test_too_many_modules(memory):
    with pytest.raises(ConfigError, match="initrd: 257 modules"):
        load(memory, marked(head=multiboot_header()), initrd="/dev/null" + ",/dev/null" * 256)


def test_the_root_pointer_of_acpi_gets_to_linux(memory):
    load(memory, VMLINUX, rsdp=0xE0000)
    assert struct.unpack("<Q", memory.read(0x7070, 8)) == (0xE0000,)


def test_the_name_of_the_file_comes_first_for_multiboot(memory, tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(marked(head=multiboot_header()))
    entry = load(memory, path, cmdline="quiet")
    (address,) = struct.unpack("<I", memory.read(entry.registers["rbx"] + 16, 4))
    assert memory.read(address, 200).partition(b"\0")[0].decode() == f"{path} quiet"


@given(st.binary(max_size=256), st.sampled_from([b"", VMLINUX[:120], multiboot_header(), bzimage(b"x")[:0x300]]))
def test_no_file_raises_anything_else(data, head):
    with GuestMemory(2 * MIB) as memory, contextlib.suppress(KvmpyError):
        load(memory, head + data)
