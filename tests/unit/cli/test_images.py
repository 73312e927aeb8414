from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmpy.cli import images
from kvmpy.errors import KvmpyError
from kvmpy.images import cache, initramfs


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a busybox that is none."""
    monkeypatch.setenv("KVMPY_CACHE", str(tmp_path / "cache"))
    busybox = tmp_path / "busybox"
    # The header of a static x86-64 program without segments.
    busybox.write_bytes(b"\x7fELF\x02".ljust(18, b"\0") + b"\x3e".ljust(100, b"\0"))
    monkeypatch.setenv("KVMPY_BUSYBOX", str(busybox))
    return tmp_path


def make_kernel(name: str = "base/vmlinux") -> str:
    path = Path(cache.kernels_folder()) / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    return str(path)


def test_where_to_look_for_a_busybox_is_known_twice_and_agrees() -> None:
    assert images._VARIABLE == initramfs.BUSYBOX_VARIABLE
    assert images._BUSYBOXES == initramfs.BUSYBOX_PATHS


def test_no_kernel_is_a_sentence_with_the_two_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "find_default_kernel", lambda **_: None)
    with pytest.raises(KvmpyError, match=r"kvmpy kernel build.*kvmpy kernel fetch"):
        images.choose(None, None)


def test_a_kernel_of_ours_gets_a_shell() -> None:
    kernel = make_kernel()
    path, initrd = images.choose(None, None)
    assert path == kernel
    assert initrd is not None
    assert Path(initrd).read_bytes()[:6] == b"070701"
    assert images.choose(kernel, None) == (kernel, initrd)


def test_who_needs_more_than_the_base_kernel_has_gets_the_full_one() -> None:
    base, full = make_kernel(), make_kernel("full/vmlinux")
    assert images.choose(None, "rd") == (base, "rd")
    assert images.choose(None, "rd", full=True) == (full, "rd")


def test_who_needs_more_than_the_base_kernel_has_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    base = make_kernel()
    assert images.choose(None, "rd", full=True) == (base, "rd")
    assert "kvmpy kernel build full" in capsys.readouterr().err


def test_an_initrd_that_was_named_is_taken() -> None:
    assert images.choose(make_kernel(), "mine")[1] == "mine"


def test_a_kernel_that_is_not_ours_gets_nothing_unasked() -> None:
    assert images.choose("/somewhere/vmlinux", None) == ("/somewhere/vmlinux", None)


def test_the_initramfs_is_made_once(folder: Path) -> None:
    first = images.default_initrd("vmlinux")
    before = os.stat(first)
    assert images.default_initrd("vmlinux") == first
    assert os.stat(first).st_mtime_ns == before.st_mtime_ns
    assert os.listdir(folder / "cache" / "initramfs") == [os.path.basename(first)]


def test_another_busybox_makes_another(folder: Path) -> None:
    first = images.default_initrd("vmlinux")
    with (folder / "busybox").open("ab") as file:
        file.write(b"more")
    assert images.default_initrd("vmlinux") != first


def test_a_cache_that_cannot_be_written_is_one_sentence(folder: Path) -> None:
    (folder / "cache").write_text("not a folder")
    with pytest.raises(KvmpyError, match="KVMPY_CACHE"):
        images.default_initrd("vmlinux")


def test_a_kernel_with_modules_gets_an_initramfs_of_its_own(folder: Path) -> None:
    plain = images.default_initrd("vmlinux")
    (folder / "lib" / "modules").mkdir(parents=True)
    assert images.default_initrd(str(folder / "vmlinuz")) != plain
