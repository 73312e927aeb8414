"""The host profile without KVM: which kind the costs mean, and the file that keeps them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpy.host.cache import cache_folder
from kvmpy.machine.profile import EMULATED_RING0, HARDWARE, KINDS, NESTED, kind_of, profile
from kvmpy.machine.profile_cache import host_key, load, store

KEY = "boot_id=1\nkernel=6\nmodules=kvm_intel\ncpu=A CPU\n"
FIGURES = (HARDWARE, 0.5, 0.25, 1500.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for the cache."""
    monkeypatch.setenv("KVMPY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class NoSystem:
    """Fails the test that measures with it."""

    def create_vm(self) -> None:
        raise AssertionError("a VM was made")


@pytest.mark.parametrize(
    ("ring0_ns", "ring3_ns", "is_virtual", "kind"),
    [
        (0.3, 0.3, False, HARDWARE),
        (0.3, 0.3, True, NESTED),
        (1000.0, 0.3, True, EMULATED_RING0),
        (1000.0, 0.3, False, EMULATED_RING0),
        (15.0, 0.3, False, HARDWARE),
        (15.1, 0.3, False, EMULATED_RING0),
    ],
)
def test_kind_follows_from_costs_and_hypervisor_bit(
    ring0_ns: float, ring3_ns: float, is_virtual: bool, kind: str
) -> None:
    assert kind_of(ring0_ns, ring3_ns, is_virtual=is_virtual) == kind


def test_what_was_stored_is_loaded(folder: Path) -> None:
    store(KEY, FIGURES)
    assert load(KEY, KINDS) == FIGURES


def test_a_stored_profile_is_used_without_a_vm(folder: Path) -> None:
    store(host_key(), FIGURES)
    found = profile(NoSystem())  # type: ignore[arg-type]
    assert (found.kind, found.ring0_ns, found.ring3_ns, found.pio_exit_ns) == FIGURES


def test_without_a_file_it_is_measured(folder: Path) -> None:
    with pytest.raises(AssertionError, match="a VM was made"):
        profile(NoSystem())  # type: ignore[arg-type]


@pytest.mark.parametrize("line", KEY.splitlines())
def test_a_file_of_another_host_or_boot_does_not_count(folder: Path, line: str) -> None:
    store(KEY, FIGURES)
    assert load(KEY.replace(line, line + "x"), KINDS) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kvmpy-host-profile=1", "kvmpy-host-profile=2"),
        ("kind=hardware", "kind=magic"),
        ("kind=hardware\n", ""),
        ("ring0_ns=0.5", "ring0_ns=nan"),
        ("ring0_ns=0.5", "ring0_ns=inf"),
        ("ring3_ns=0.25", "ring3_ns=-1"),
        ("ring3_ns=0.25", "ring3_ns=0"),
        ("pio_exit_ns=1500.0", "pio_exit_ns=soon"),
        ("pio_exit_ns=1500.0", "pio_exit_ns"),
        ("pio_exit_ns=1500.0\n", ""),
    ],
)
def test_a_broken_file_does_not_count(folder: Path, old: str, new: str) -> None:
    store(KEY, FIGURES)
    text = (folder / "host-profile").read_text()
    assert old in text
    (folder / "host-profile").write_text(text.replace(old, new))
    assert load(KEY, KINDS) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(tail=st.binary(max_size=200))
def test_no_file_raises(folder: Path, tail: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "host-profile").write_bytes(f"kvmpy-host-profile=1\n{KEY}kind=hardware\n".encode() + tail)
    found = load(KEY, KINDS)
    assert found is None or all(0 < cost < 1e9 for cost in found[1:])


def test_a_pipe_in_the_files_place_does_not_hang(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "host-profile")
    assert load(KEY, KINDS) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_does_not_count(folder: Path) -> None:
    store(KEY, FIGURES)
    os.chown(folder / "host-profile", 12345, 12345)
    assert load(KEY, KINDS) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVMPY_CACHE", str(tmp_path / "file"))
    store(KEY, FIGURES)
    assert load(KEY, KINDS) is None


def test_storing_leaves_one_file(folder: Path) -> None:
    store(KEY, FIGURES)
    store(KEY, FIGURES)
    assert os.listdir(folder) == ["host-profile"]


def test_a_failed_rename_leaves_nothing(folder: Path) -> None:
    (folder / "host-profile").mkdir(parents=True)
    store(KEY, FIGURES)
    assert os.listdir(folder) == ["host-profile"]


def test_only_the_user_can_read_the_cache(folder: Path) -> None:
    store(KEY, FIGURES)
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "host-profile").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"KVMPY_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"KVMPY_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/kvmpy"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/kvmpy"),
        ({"HOME": "/c"}, "/c/.cache/kvmpy"),
    ],
)
def test_the_cache_folder(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KVMPY_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == expected


def test_the_key_names_this_boot() -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert f"boot_id={boot_id}\nkernel={os.uname().release}\n" in host_key()
