from __future__ import annotations

import stat
import struct
from pathlib import Path

import pytest

from kvmpy.errors import ImageError
from kvmpy.images import cpio, initramfs
from kvmpy.images.static_init import Program
from kvmpy.testing import linux_init


def program(segment: int = 1) -> bytes:
    """A static program, or with segment 3 (PT_INTERP) one that asks for a loader."""
    data = bytearray(Program().elf())
    struct.pack_into("<I", data, 64, segment)
    return bytes(data)


@pytest.fixture
def busybox(tmp_path: Path) -> str:
    path = tmp_path / "busybox"
    path.write_bytes(program())
    return str(path)


def names(archive: bytes) -> dict[str, cpio.Entry]:
    return {entry.name: entry for entry in cpio.read(archive)}


def test_holds_what_a_shell_needs(busybox: str) -> None:
    found = names(initramfs.default_initramfs(busybox))
    assert found["bin/busybox"].data == program()
    assert found["bin/sh"].data == b"busybox"
    assert found["init"].data == initramfs.shell_init()
    assert found["init"].mode == stat.S_IFREG | 0o755
    assert found["dev/console"].device == (5, 1)
    assert {"proc", "sys", "dev", "tmp", "root"} <= found.keys()


def test_modules_are_loaded_in_the_order_given(busybox: str) -> None:
    modules = {"virtio.ko": b"one", "ext4.ko": b"two"}
    found = names(initramfs.default_initramfs(busybox, modules=modules))
    assert found["lib/modules/ext4.ko"].data == b"two"
    init = found["init"].data
    assert 0 < init.index(b"/lib/modules/virtio.ko\0") < init.index(b"/lib/modules/ext4.ko\0")


def test_takes_further_files_and_a_greeting(busybox: str) -> None:
    extra = [cpio.file("etc/motd", b"welcome")]
    found = names(initramfs.default_initramfs(busybox, greeting="good day", extra=extra, compress=True))
    assert found["etc/motd"].data == b"welcome"
    assert b"good day" in found["init"].data


def test_busybox_comes_from_the_environment(busybox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMPY_BUSYBOX", busybox)
    assert initramfs.find_busybox() == busybox
    assert initramfs.find_busybox("/bin") == "/bin"


def test_says_what_to_install_without_busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVMPY_BUSYBOX", raising=False)
    monkeypatch.setattr(initramfs, "BUSYBOX_PATHS", (str(tmp_path / "none"),))
    with pytest.raises(ImageError, match="apt-get install busybox-static"):
        initramfs.find_busybox()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an x86-64 program"),
        (b"#!/bin/sh\n", "not an x86-64 program"),
        (b"\x7fELF\x01" + bytes(100), "not an x86-64 program"),
        (program()[:60], "not an x86-64 program"),
        (program(3), "dynamically linked"),
        (program()[:32] + b"\xff" * 8 + program()[40:], "outside of the file"),
    ],
)
def test_refuses_a_busybox_that_cannot_run_alone(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "busybox"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        initramfs.default_initramfs(str(path))


def test_says_why_busybox_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="Is a directory"):
        initramfs.read_busybox(str(tmp_path))


def test_the_smallest_archive_is_a_console_and_an_init() -> None:
    init = linux_init.init_printing("hi")
    found = names(linux_init.initramfs(init))
    assert found.keys() == {"dev", "dev/console", "init"}
    assert found["init"].data == init
