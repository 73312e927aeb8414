"""The command as a process: what it imports, prints and returns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import _cffi_backend
import pytest

from kvmpy.cli import images
from kvmpy.cli import main as command
from kvmpy.cli.say import printable
from kvmpy.testing.asm import assemble
from kvmpy.testing.images import ElfSegment, elf_image
from kvmpy.units import MIB

# What costs more to import than a machine takes to start.
HEAVY = {
    "asyncio", "click", "dataclasses", "enum", "importlib.metadata", "inspect", "json", "logging", "pathlib", "psutil",
    "pydantic", "re", "rich", "shutil", "signal", "socket", "subprocess", "tempfile", "typer", "typing",
}  # fmt: skip


def kvmpy(*words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvmpy", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(environment or {})},
    )


def imported(script: str, *words: str) -> set[str]:
    """The modules that are loaded when `script` has run."""
    # -I -S: what a site's .pth files import is not ours to count.
    folders = [str(Path(command.__file__).parents[2]), str(Path(_cffi_backend.__file__).parent)]
    prologue = f"import sys; sys.path[:0] = {folders!r}; "
    epilogue = "; print(*sys.modules, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", prologue + script + epilogue, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(result.stderr.splitlines()[-1].split())


MAIN = "from kvmpy.cli.main import main; main(sys.argv[1:])"


def test_version_is_printed_without_heavy_imports() -> None:
    assert kvmpy("--version").stdout.startswith("kvmpy ")
    assert not imported(MAIN, "--version") & {"typer", "rich", "pydantic"}


def test_boot_reads_its_words_and_checks_them_without_heavy_imports(tmp_path: Path) -> None:
    words = ["boot", str(tmp_path / "none"), "-m", "128M", "--cpus", "2", "--debug-exit", "0xf4"]
    modules = imported(MAIN, *words)
    assert "kvmpy.config.machine" in modules
    assert not modules & HEAVY


def test_boot_chooses_a_kernel_and_its_initrd_without_heavy_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVMPY_CACHE", str(tmp_path))
    (tmp_path / "kernels" / "base").mkdir(parents=True)
    (tmp_path / "kernels" / "base" / "vmlinux").touch()
    (tmp_path / "initramfs").mkdir()
    modules_folder = str((tmp_path / "kernels" / "base" / "lib" / "modules").resolve())
    (tmp_path / "initramfs" / f"shell-{images._state(modules_folder)}.cpio").touch()
    modules = imported(MAIN, "boot")
    assert "kvmpy.images.cache" in modules
    assert not modules & HEAVY


def test_what_runs_a_machine_needs_no_heavy_imports() -> None:
    modules = imported("import kvmpy.cli.run")
    assert "kvmpy.machine.builder" in modules
    assert not modules & HEAVY


def test_boot_does_not_import_other_verbs(tmp_path: Path) -> None:
    modules = imported(MAIN, "boot", str(tmp_path / "none"))
    assert "kvmpy.cli.boot" in modules
    assert not modules & {"kvmpy.cli.doctor", "kvmpy.cli.kernel", "kvmpy.cli.full"}


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["-m", "0.5M"], "memory"),
        (["-m", "lots"], "memory"),
        (["--cpus", "0"], "cpus"),
        (["--debug-exit", "0x10000"], "debug-exit"),
        (["--debug-exit", "f4"], "debug-exit"),
        (["--timeout", "0"], "timeout"),
        (["--name", "a/b"], "name"),
        (["-i", "/nowhere"], "initrd"),
        (["--report", "/nowhere/at/all"], "report"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_sentence_and_status_2(
    words: list[str], option: str, tmp_path: Path
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(16))
    result = kvmpy("boot", str(kernel), *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"kvmpy: {option}: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--protocol", "flat16"], "kernel"),
        (["--firmware", "bios", "-i", "rd"], "initrd"),
        (["--firmware", "bios", "-a", "quiet"], "append"),
    ],
)
def test_what_needs_a_kernel_asks_for_one(words: list[str], option: str) -> None:
    result = kvmpy("boot", *words)
    assert result.returncode == 2
    assert result.stderr.startswith(f"kvmpy: {option}: ")
    assert "name" in result.stderr


def test_a_kernel_that_is_not_there_is_one_sentence() -> None:
    result = kvmpy("boot", "/nowhere/vmlinux\x1b[31m")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr


def test_an_unknown_option_is_typers_to_explain() -> None:
    result = kvmpy("boot", "--memroy", "1G")
    assert result.returncode == 2
    assert "--memory" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_of_a_verb_teaches() -> None:
    result = kvmpy("boot", "--help")
    assert result.returncode == 0
    for text in ("--debug-exit", "Examples", "Exit status", "124 timeout", "Ctrl-A x"):
        assert text in result.stdout


def test_help_lists_the_verbs() -> None:
    result = kvmpy("--help")
    assert result.returncode == 0
    assert all(verb in result.stdout for verb in command.VERBS)


def test_an_unknown_verb_is_status_2() -> None:
    result = kvmpy("bot")
    assert result.returncode == 2
    assert "boot" in result.stderr


def test_completion_knows_the_options_of_a_verb() -> None:
    result = kvmpy(
        environment={"_KVMPY_COMPLETE": "complete_bash", "COMP_WORDS": "kvmpy boot --deb", "COMP_CWORD": "2"}
    )
    assert "--debug-exit" in result.stdout


def test_an_unexpected_error_is_one_sentence_without_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KVMPY_DEBUG", raising=False)
    monkeypatch.setitem(command.VERBS, "boot", "kvmpy.no_such_module:boot")
    assert command.main(["boot"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("kvmpy: ModuleNotFoundError")
    assert error.count("\n") == 1


def test_an_unexpected_error_is_raised_when_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMPY_DEBUG", "1")
    monkeypatch.setitem(command.VERBS, "boot", "kvmpy.no_such_module:boot")
    with pytest.raises(ModuleNotFoundError):
        command.main(["boot"])


def test_a_reader_that_has_enough_gets_no_complaint() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "kvmpy", "doctor", "--json"], stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (command.BROKEN_PIPE, b"")


@pytest.mark.parametrize("words", [["--version"], ["doctor", "--json"], ["kernel", "list"], ["boot", "--help"]])
def test_a_full_disk_behind_the_output_is_no_mistake_of_ours(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "kvmpy", *words], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert result.returncode == 1
    assert result.stderr == b"kvmpy: standard output cannot be written: No space left on device\n"


def test_an_error_of_a_sub_command_is_one_sentence(tmp_path: Path) -> None:
    result = kvmpy("kernel", "path", "full", environment={"KVMPY_CACHE": str(tmp_path)})
    assert result.returncode == 1
    assert result.stderr.startswith("kvmpy: ")
    assert result.stderr.count("\n") == 1


def test_control_characters_of_others_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\n\udcff") == "a\\x1b[2Jb\\n\\udcff"
    assert printable("für alle") == "für alle"


@pytest.mark.kvm
def test_a_whole_boot_needs_no_heavy_imports(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    code = assemble("mov al, 0x2a\n out 0xf4, al\nstay: jmp stay", origin=16 * MIB)
    kernel.write_bytes(elf_image([ElfSegment(16 * MIB, bytes(code))]))
    modules = imported(MAIN, "boot", str(kernel), "--debug-exit", "0xf4", "-m", "32M", "--timeout", "20")
    assert "kvmpy.machine.vcpu_thread" in modules
    assert not modules & HEAVY
