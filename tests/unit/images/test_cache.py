from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmpy.host.cache import cache_folder
from kvmpy.images import cache


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("KVMPY_CACHE", raising=False)
    return tmp_path


def put(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"kernel")
    return str(path)


def test_lies_in_the_home_folder(home: Path) -> None:
    assert cache_folder() == f"{home}/.cache/kvmpy"


def test_follows_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == "/xdg/kvmpy"
    monkeypatch.setenv("KVMPY_CACHE", "/own")
    assert cache_folder() == "/own"


def test_ignores_a_relative_xdg_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == f"{home}/.cache/kvmpy"


def test_prefers_base_then_full_then_fetched_then_the_hosts(home: Path) -> None:
    kernels = Path(cache.kernels_folder())
    boot = home / "boot"
    assert cache.find_default_kernel(str(boot)) is None
    host = put(boot / "vmlinuz-6.1")
    assert cache.find_default_kernel(str(boot)) == host
    for name, image in (("fetched", "vmlinuz"), ("full", "vmlinux"), ("base", "vmlinux")):
        path = put(kernels / name / image)
        assert cache.find_default_kernel(str(boot)) == path


def test_takes_the_newest_of_the_hosts_kernels(home: Path) -> None:
    boot = home / "boot"
    new, old = put(boot / "vmlinuz-6.1"), put(boot / "vmlinuz-6.9")
    put(boot / "initrd.img-6.9")
    os.utime(old, (1, 1))
    assert cache.find_default_kernel(str(boot)) == new


def test_passes_over_a_link_that_leads_nowhere(home: Path) -> None:
    folder = Path(cache.kernels_folder())
    folder.mkdir(parents=True)
    (folder / "base").symlink_to("base-gone")
    assert cache.find_default_kernel(str(home / "boot")) is None


def test_names_the_two_commands_that_get_a_kernel() -> None:
    assert "`kvmpy kernel build`" in cache.NO_KERNEL
    assert "`kvmpy kernel fetch`" in cache.NO_KERNEL


def test_costs_next_to_nothing_to_import() -> None:
    program = (
        "import sys; before = set(sys.modules); import kvmpy.images.cache; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - {"__future__"} == {
        "kvmpy",
        "kvmpy.host",
        "kvmpy.host.cache",
        "kvmpy.images",
        "kvmpy.images.cache",
    }
