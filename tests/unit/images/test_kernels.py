from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvmpy.cli.kernel import app
from kvmpy.errors import ConfigError, HostError, ImageError, KvmpyError
from kvmpy.images import cache, debian, kernel_build, kernel_fetch, kernels


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMPY_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "source_version", lambda: "6.1.1-1")
    (tmp_path / "kernels").mkdir()
    return tmp_path / "kernels"


def made(flavour: str = "base", source: str = "6.1.1-1", content: bytes = b"kernel") -> kernels.Kernel:
    with kernels.workspace(flavour) as work:
        result = Path(work) / "result"
        result.mkdir()
        (result / "vmlinux").write_bytes(content)
        return kernels.install(
            str(result),
            kernels.key(flavour, source),
            flavour=flavour,
            release="6.1.1",
            source=source,
            image="vmlinux",
            seconds=2,
        )


def test_an_installed_kernel_is_found_under_each_of_its_names(folder: Path) -> None:
    kernel = made()
    assert kernels.find("base") == kernel
    assert kernels.path() == kernel.path == f"{folder}/{kernels.key('base', '6.1.1-1')}/vmlinux"
    assert kernels.list_kernels() == [kernel]
    assert os.path.realpath(cache.find_default_kernel() or "") == kernel.path


def test_installing_leaves_nothing_else_behind(folder: Path) -> None:
    made()
    made(content=b"again")
    assert sorted(os.listdir(folder)) == ["base", kernels.key("base", "6.1.1-1")]
    assert Path(kernels.path()).read_bytes() == b"again"


def test_a_folder_put_there_by_hand_makes_way(folder: Path) -> None:
    (folder / "base").mkdir()
    (folder / "base" / "vmlinux").write_text("old")
    kernel = made()
    assert os.path.realpath(folder / "base") == kernel.folder
    assert sorted(os.listdir(folder)) == ["base", kernel.name]


def test_a_kernel_from_other_source_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = made(source="6.1.0-9")
    assert kernels.find("base") is None
    monkeypatch.setattr(kernels, "source_version", lambda: "")
    assert kernels.find("base") == kernel


def test_the_name_depends_on_all_that_decides_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {kernels.key("base", "1"), kernels.key("base", "2"), kernels.key("full", "1")}
    monkeypatch.setattr(kernels, "RECIPE", kernels.RECIPE + 1)
    seen.add(kernels.key("base", "1"))
    monkeypatch.setattr(kernels, "COMPILER_FLAGS", "-Og")
    seen.add(kernels.key("base", "1"))
    assert len(seen) == 5


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"image": 5}', "\0" * 100_000, '{"flavour": "base"}'])
def test_a_folder_with_a_bad_record_is_no_kernel(folder: Path, record: str) -> None:
    (folder / "base-1").mkdir()
    (folder / "base-1" / "kernel.json").write_text(record)
    assert kernels.list_kernels() == []


def test_a_record_cannot_point_out_of_its_folder() -> None:
    kernel = made()
    record = Path(kernel.folder) / "kernel.json"
    record.write_text(record.read_text().replace('"vmlinux"', '"/etc/../etc/vmlinux"'))
    assert kernels.list_kernels() == [kernel]


@pytest.mark.parametrize("flavour", ["base", "full", "fetched"])
def test_says_which_command_gets_the_kernel(flavour: str) -> None:
    with pytest.raises(ImageError, match=f"`kvmpy kernel (build {flavour}|fetch)`"):
        kernels.path(flavour)


def test_an_unknown_flavour_is_a_usage_error() -> None:
    for function in (kernels.path, kernels.fragment, kernel_build.build):
        with pytest.raises(ConfigError, match="'huge'"):
            function("huge")


def test_the_workspace_goes_away_and_takes_older_ones_along(folder: Path) -> None:
    (folder / ".work-base-killed").mkdir()
    (folder / ".work-full-running").mkdir()
    with kernels.workspace("base") as work:
        Path(work, "half").write_text("of a kernel")
    assert os.listdir(folder) == [".work-full-running"]


def test_a_second_build_waits_for_the_first(folder: Path) -> None:
    holder = os.open(folder / ".lock-base", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    waited = []

    def waiting() -> None:
        waited.append(True)
        os.close(holder)

    with kernels.locked("base", waiting):
        other = os.open(folder / ".lock-base", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
    assert waited == [True]


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVMPY_CACHE", str(tmp_path / "file"))
    with pytest.raises(HostError, match="KVMPY_CACHE names another"):
        kernel_build.build("base")


def test_options_are_read_as_kconfig_writes_them() -> None:
    text = '# a comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x y"\nCONFIG_A=n\n'
    assert kernels.options(text) == {"CONFIG_A": "n", "CONFIG_B": "n", "CONFIG_C": '"x y"'}


def test_tells_which_options_were_not_set() -> None:
    wanted = "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=5\nCONFIG_D=n\n"
    assert kernels.unmet(wanted, "CONFIG_A=y\nCONFIG_B=y\n") == ["CONFIG_B=n (is y)", "CONFIG_C=5 (is n)"]


def test_full_says_more_than_base() -> None:
    base, full = kernels.options(kernels.fragment("base")), kernels.options(kernels.fragment("full"))
    assert (base["CONFIG_SMP"], base["CONFIG_PCI"]) == ("n", "n")
    assert (full["CONFIG_SMP"], full["CONFIG_PCI"]) == ("y", "y")
    assert base.keys() <= full.keys()


@pytest.mark.parametrize("flavour", ["base", "full"])
def test_no_option_is_named_twice_in_a_fragment(flavour: str) -> None:
    path = Path(kernels.__file__).parent / "kernel-configs" / f"{flavour}.config"
    named = [line.partition("=")[0] for line in path.read_text().splitlines() if line.startswith("CONFIG_")]
    assert len(named) == len(set(named))


def test_a_command_that_fails_is_told_with_its_last_lines() -> None:
    with pytest.raises(KvmpyError, match=r"status 3: first \| second"):
        kernel_build._run(["sh", "-c", "echo first; echo second >&2; exit 3"])


def test_a_command_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(HostError, match="nonesuch: No such file"):
        kernel_build._run(["nonesuch"])


def test_an_interrupted_command_takes_its_children_along(tmp_path: Path) -> None:
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kernel_build._run(["sh", "-c", f"sleep 300 & echo $! > {tmp_path}/child; echo started; wait"], each=interrupted)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while running(child) and time.monotonic() < deadline:
        os.sched_yield()
    assert not running(child)


def test_a_build_that_is_terminated_ends_as_an_exception() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, kernel_build._ending_in_order():
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def running(process: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_build_does_not_see_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCH", "arm64")
    monkeypatch.setenv("MAKEFLAGS", "-k")
    lines = kernel_build._run(["env"])
    assert not [line for line in lines if line.startswith(("ARCH=", "MAKEFLAGS="))]
    assert "LC_ALL=C" in lines


RECORD = """\
Package: linux-image-cloud-amd64
Depends: libc6 (>= 2.36) | other, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Version: 6.1.192-2

Package: linux-image-cloud-amd64
Depends: linux-image-6.1.0-1-cloud-amd64
"""


def test_the_metapackage_leads_to_the_versioned_image() -> None:
    assert kernel_fetch.depends(RECORD) == ["libc6", "linux-image-6.1.0-56-cloud-amd64"]
    assert kernel_fetch.versioned_image(RECORD) == "linux-image-6.1.0-56-cloud-amd64"


def test_a_metapackage_without_an_image_is_refused() -> None:
    with pytest.raises(ImageError, match="apt-get update"):
        kernel_fetch.versioned_image("Depends: linux-image-cloud-amd64\n")


def test_missing_packages_are_named_with_the_command_for_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    if not shutil.which("apt-get"):
        pytest.skip("needs apt-get")
    with pytest.raises(KvmpyError, match="run `sudo apt-get install no-such-package-1 no-such-package-2`"):
        debian.need(["no-such-package-1", "no-such-package-2"], "a test")


def test_a_command_of_the_distribution_that_is_missing_is_one_sentence() -> None:
    with pytest.raises(KvmpyError, match="no no-such-command on this host"):
        debian.run("no-such-command")


def test_the_command_lists_kernels_as_json() -> None:
    kernel = made()
    done = CliRunner().invoke(app, ["list", "--json"])
    assert done.exit_code == 0
    (listed,) = json.loads(done.stdout)["kernels"]
    assert (listed["flavour"], listed["path"], listed["size"]) == ("base", kernel.path, 6)


def test_the_command_says_what_to_do_when_there_is_none() -> None:
    assert "kvmpy kernel build" in CliRunner().invoke(app, ["list"]).stdout


def test_the_command_prints_a_path() -> None:
    kernel = made()
    assert CliRunner().invoke(app, ["path", "base"]).stdout == f"{kernel.path}\n"
    assert CliRunner().invoke(app, ["path", "huge"]).exit_code == 2


def test_the_command_gives_what_is_built_without_building(folder: Path) -> None:
    kernel = made()
    assert CliRunner().invoke(app, ["build"]).stdout == f"{kernel.path}\n"
    assert ".lock-base" not in os.listdir(folder)


def test_the_script_works_without_the_extension() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([root / "scripts/build-guest-kernel", "huge"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kvmpy: flavour: 'huge' is not a kernel")


def test_importing_the_builder_needs_no_extension() -> None:
    program = (
        "import sys; sys.modules['kvmpy._kvm'] = None; import kvmpy.images.kernel_build, kvmpy.images.kernel_fetch"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
