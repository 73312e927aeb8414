from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmpy.cli import checks
from kvmpy.cli.checks import host, kvm
from kvmpy.cli.checks.finding import FAILURE, PASS, WARNING, Check
from kvmpy.cli.doctor import doctor


def one(found: object) -> Check:
    [check] = found  # type: ignore[misc]
    return check


def test_a_device_that_is_not_there_is_a_failure_with_a_cure(tmp_path: Path) -> None:
    check = one(kvm.check_device(str(tmp_path / "kvm")))
    assert check.verdict == FAILURE
    assert check.cure


def test_what_cannot_be_opened_has_no_version_and_no_capabilities(tmp_path: Path) -> None:
    assert list(kvm.check_api_version(str(tmp_path / "kvm"))) == []
    assert list(kvm.check_capabilities(str(tmp_path / "kvm"))) == []


@pytest.mark.kvm
def test_kvm_speaks_version_12() -> None:
    assert one(kvm.check_api_version()) == Check("KVM API", PASS, "version 12")


@pytest.mark.kvm
def test_missing_capabilities_are_named_with_what_they_are_for() -> None:
    feature = kvm.Feature("dreams", {"IRQCHIP": 0, "NO_SUCH_THING": 65000}, WARNING, "wake up")
    check = one(kvm.check_capabilities(features=[feature]))
    assert check == Check("KVM for dreams", WARNING, "missing: KVM_CAP_NO_SUCH_THING", "wake up")


@pytest.mark.kvm
def test_the_numbers_of_capabilities_are_the_bindings() -> None:
    from kvmpy.kvm import capabilities

    for feature in kvm.FEATURES:
        for name, number in feature.capabilities.items():
            assert getattr(capabilities, f"KVM_CAP_{name}") == number


@pytest.mark.kvm
def test_the_profile_shows_its_figures() -> None:
    check = one(kvm.check_profile())
    assert check.detail.count(" ns") == 3
    assert (check.verdict == PASS) == (not check.cure)


def test_cgroups_of_either_version_are_seen(tmp_path: Path) -> None:
    assert one(host.check_cgroup(str(tmp_path))).verdict == WARNING
    (tmp_path / "cpu").mkdir()
    assert "memory" in one(host.check_cgroup(str(tmp_path))).detail
    (tmp_path / "memory").mkdir()
    assert one(host.check_cgroup(str(tmp_path))) == Check("cgroup", PASS, "v1 with cpu, memory")
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert one(host.check_cgroup(str(tmp_path))) == Check("cgroup", PASS, "v2 with cpu, cpuset, memory")


def test_a_tool_is_found_or_its_package_is_named() -> None:
    found = {check.name: check for check in host.check_tools(lambda name: "/bin/gdb" if name == "gdb" else None)}
    assert found["gdb"] == Check("gdb", PASS, "/bin/gdb")
    assert found["passt"].cure == "sudo apt-get install passt"


def test_a_package_that_is_not_installed_has_no_extras() -> None:
    assert one(host.check_extras("no-such-package")).verdict == WARNING


def test_extras_are_those_that_the_package_declares() -> None:
    found = {check.name: check for check in host.check_extras()}
    assert "extra images" in found
    assert all(check.verdict == PASS or check.cure.startswith("pip install") for check in found.values())


def test_a_check_that_fails_by_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_tun() -> Iterator[Check]:
        raise OSError("no luck")

    monkeypatch.setattr(checks, "CHECKS", (check_tun,))
    assert list(checks.run_checks()) == [Check("tun", WARNING, "cannot be looked at: no luck")]


def test_every_finding_that_is_not_right_has_a_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kvm, "KVM", str(tmp_path / "kvm"))
    for check in checks.run_checks():
        assert check.verdict in (PASS, WARNING, FAILURE)
        assert check.detail
        assert check.verdict == PASS or check.cure or check.detail.startswith("cannot be looked at"), check


FOUND = [Check("a", PASS, "fine"), Check("b", WARNING, "so so", "do [this]")]
BAD = Check("c", FAILURE, "broken", "mend it")


@pytest.mark.parametrize(("extra", "status"), [([], 0), ([BAD], 1)])
def test_only_a_failure_is_status_1(
    extra: list[Check], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "run_checks", lambda: iter(FOUND + extra))
    assert doctor() == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["pass: a: fine", "warning: b: so so; do [this]"]
    assert len(lines) == 3 + len(extra)


def test_json_has_every_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(checks, "run_checks", lambda: iter([*FOUND, BAD]))
    assert doctor(as_json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["checks"][2] == {"name": "c", "verdict": "failure", "detail": "broken", "cure": "mend it"}


def test_a_terminal_gets_a_table_with_the_cures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setattr(checks, "run_checks", lambda: iter([*FOUND, BAD]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert doctor() == 1
    text = capsys.readouterr().out
    assert all(word in text for word in ("so so", "do [this]", "mend it", "1 failed"))
