from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.config import machine
from kvmpy.config.machine import MachineConfig, parse_port
from kvmpy.errors import ConfigError
from kvmpy.units import GIB, MIB, TIB


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x7fELF")
    return str(path)


def refused(kernel: str, **values: Any) -> str:
    """The option that the refusal of `values` names."""
    with pytest.raises(ConfigError) as caught:
        MachineConfig(kernel, **values)
    assert "\n" not in str(caught.value)
    return caught.value.path


def test_the_defaults_are_a_small_machine_with_a_console(kernel: str) -> None:
    config = MachineConfig(kernel)
    assert (config.memory, config.vcpus, config.console, config.append) == (256 * MIB, 1, "serial", "")
    assert (config.initrd, config.debug_exit, config.timeout, config.report, config.name) == (None,) * 5


def test_its_text_shows_what_is_wanted(kernel: str) -> None:
    assert "vcpus=3" in repr(MachineConfig(kernel, vcpus=3))


@pytest.mark.parametrize("size", [0, -4096, MIB - 4096, MIB + 1, 2 * TIB])
def test_memory_that_no_machine_has_is_refused(kernel: str, size: int) -> None:
    assert refused(kernel, memory=size) == "memory"


@pytest.mark.parametrize("size", [MIB, MIB + 4096, 5 * GIB])
def test_memory_of_whole_pages_is_taken(kernel: str, size: int) -> None:
    assert MachineConfig(kernel, memory=size).memory == size


@pytest.mark.parametrize("count", [0, -1, machine.MAX_VCPUS + 1, 10**30])
def test_a_number_of_cpus_out_of_range_is_refused(kernel: str, count: int) -> None:
    assert refused(kernel, vcpus=count) == "vcpus"


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 1e300])
def test_a_timeout_that_never_or_always_comes_is_refused(kernel: str, seconds: float) -> None:
    assert refused(kernel, timeout=seconds) == "timeout"


@pytest.mark.parametrize("port", [-1, 0x10000])
def test_a_port_outside_of_the_port_space_is_refused(kernel: str, port: int) -> None:
    assert refused(kernel, debug_exit=port) == "debug_exit"


def test_port_zero_is_a_port(kernel: str) -> None:
    assert MachineConfig(kernel, debug_exit=0).debug_exit == 0


def test_an_unknown_console_is_refused(kernel: str) -> None:
    assert refused(kernel, console="vga") == "console"


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "x" * (machine.MAX_APPEND_LENGTH + 1)])
def test_a_command_line_that_cannot_be_passed_on_is_refused(kernel: str, text: str) -> None:
    assert refused(kernel, append=text) == "append"


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "ä", "x" * 65, "a\n"])
def test_a_name_that_is_no_file_name_everywhere_is_refused(kernel: str, name: str) -> None:
    assert refused(kernel, name=name) == "name"


def test_a_usual_name_is_taken(kernel: str) -> None:
    assert MachineConfig(kernel, name="web-1_a.b").name == "web-1_a.b"


def test_files_that_are_no_files_are_refused(kernel: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    empty = tmp_path / "empty"
    empty.touch()
    for name in (tmp_path, fifo, empty, tmp_path / "none", "/dev/zero", "", "a\0b", "x" * 5000):
        assert refused(str(name)) == "kernel"
        assert refused(kernel, initrd=str(name)) == "initrd"


def test_a_kernel_file_beyond_all_bounds_is_refused_unread(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, machine.MAX_KERNEL_SIZE + 1)
    assert refused(str(huge)) == "kernel"


def test_an_initrd_larger_than_memory_is_refused(kernel: str, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.touch()
    os.truncate(initrd, 2 * MIB)
    assert refused(kernel, initrd=str(initrd), memory=MIB) == "initrd"


def test_a_report_needs_a_folder_and_a_name(kernel: str, tmp_path: Path) -> None:
    for name in ("", str(tmp_path), str(tmp_path / "none" / "report"), "a\0b"):
        assert refused(kernel, report=name) == "report"
    assert MachineConfig(kernel, report=str(tmp_path / "report")).report


def test_looking_leaves_nothing_behind(kernel: str, tmp_path: Path) -> None:
    MachineConfig(kernel, report=str(tmp_path / "report"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vmlinux"]


@pytest.mark.parametrize("text", ["0xf4", "244", "0b11110100", "0o364"])
def test_a_port_is_read_in_any_base(text: str) -> None:
    assert parse_port(text) == 0xF4


@given(st.text(max_size=40))
def test_a_text_is_a_port_or_refused(text: str) -> None:
    try:
        assert 0 <= parse_port(text, path="debug_exit") <= 0xFFFF
    except ConfigError as error:
        assert str(error).startswith("debug_exit: ")  # noqa: PT017


def test_a_kernel_may_be_bytes_but_not_none_of_them() -> None:
    assert MachineConfig(b"x", initrd=b"y").initrd == b"y"
    with pytest.raises(ConfigError, match="kernel"):
        MachineConfig(b"")
    with pytest.raises(ConfigError, match="initrd"):
        MachineConfig(b"x", initrd=bytes(MIB + 1), memory=MIB)


def test_virtio_devices_are_reached_over_mmio_or_pci(kernel: str) -> None:
    assert MachineConfig(kernel).virtio == "mmio"
    assert MachineConfig(kernel, virtio="pci").virtio == "pci"
    assert refused(kernel, virtio="isa") == "virtio"
