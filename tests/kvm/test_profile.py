"""The host profile, measured on this host's KVM."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kvmpy.kvm import System
from kvmpy.machine.profile import EMULATED_RING0, KINDS, measure, profile

pytestmark = pytest.mark.kvm


class NoSystem:
    """Fails the test that measures with it."""

    def create_vm(self) -> None:
        raise AssertionError("a VM was made")


def test_measured_costs_are_sane() -> None:
    with System() as system:
        found = measure(system)
    assert found.kind in KINDS
    assert 0.05 < found.ring3_ns < 100
    assert found.ring3_ns / 2 < found.ring0_ns < 100_000
    assert 200 < found.pio_exit_ns < 1_000_000
    assert (found.kind == EMULATED_RING0) == (found.ring0_ns > 50 * found.ring3_ns)


def test_measuring_takes_under_a_tenth_of_a_second() -> None:
    with System() as system:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            measure(system)
            times.append(time.perf_counter() - start)
    assert min(times) < 0.1


@pytest.mark.skipif(not Path("/sys/module/kvm_pvm").exists(), reason="this KVM runs ring 0 on the processor")
def test_kvm_pvm_emulates_ring_0() -> None:
    with System() as system:
        assert measure(system).kind == EMULATED_RING0


def test_the_second_profile_opens_no_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMPY_CACHE", str(tmp_path))
    with System() as system:
        first = profile(system)
    second = profile(NoSystem())  # type: ignore[arg-type]
    assert (tmp_path / "host-profile").is_file()
    assert repr(second) == repr(first)
