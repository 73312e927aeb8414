"""The parts of the benchmark `accesses`: each access goes the way that it is measured on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmpy.bench.__main__ import main
from kvmpy.bench.accesses import ACCESSES, AT_ONCE, WARM_UP, WAYS, Nobody, PythonDevice, Stamps, access_ns, c_ns
from kvmpy.errors import StateError
from kvmpy.machine.machine import Machine

pytestmark = pytest.mark.kvm

ALL = ACCESSES + WARM_UP


class Looking:
    """A way, and what the exit loop counted on it."""

    def __init__(self, way: Nobody) -> None:
        self.way = way
        self._attach, way.attach = way.attach, self.attach  # type: ignore[method-assign]

    def attach(self, machine: Machine) -> None:
        self.machine = machine
        self._attach(machine)

    def exits(self) -> int:
        stats = [vcpu.stats for vcpu in self.machine.vcpus]
        return sum((each.mmio if self.way.mmio else each.ports).get(self.way.where.start, 0) for each in stats)


@pytest.mark.parametrize("mmio", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_every_access_goes_its_way(name: str, mmio: bool) -> None:
    way = WAYS[name](mmio=mmio)
    looking = Looking(way)
    assert access_ns(way) > 0
    assert way.seen == ALL
    if name == "ioeventfd":
        assert looking.exits() == 0
    elif name == "traced" and way.is_coalesced:  # type: ignore[attr-defined]
        assert looking.exits() < ALL / 10
    else:
        assert looking.exits() == ALL


@pytest.mark.parametrize("name", AT_ONCE)
def test_both_vcpus_do_all_their_accesses(name: str) -> None:
    way = WAYS[name]()
    assert access_ns(way, vcpus=2) > 0
    assert way.seen == 2 * ALL


@pytest.mark.parametrize("vcpus", [1, 2])
def test_the_loop_in_c_comes_to_its_end(vcpus: int) -> None:
    assert c_ns(vcpus) > 0


def test_accesses_that_went_another_way_are_no_sample() -> None:
    class Beside(PythonDevice):
        def attach(self, machine: Machine) -> None:
            self.where = range(self.where.stop, self.where.stop + 4)
            super().attach(machine)

    with pytest.raises(StateError, match="Beside saw 0 accesses"):
        access_ns(Beside())


def test_a_guest_that_never_came_to_its_end_is_no_sample() -> None:
    stamps = Stamps(1)
    stamps.meet()
    with pytest.raises(StateError):
        stamps.per_access()


def test_the_report_has_each_way_beside_the_loop_in_c(tmp_path: Path) -> None:
    path = tmp_path / "accesses.json"
    assert main(["accesses", "--rounds", "2", "--json", str(path)]) == 0
    rows = {row["label"]: row for row in json.loads(path.read_text())["rows"]}
    in_c = rows["port, C loop"]["values"]
    for space in ("port", "MMIO"):
        for name in WAYS:
            values = rows[f"{space}, {name}"]["values"]
            ratios = rows[f"{space}, {name}, over C"]["values"]
            assert ratios == [value / bare for value, bare in zip(values, in_c, strict=True)]
    for name in ("C loop", *AT_ONCE):
        assert len(rows[f"2 vCPUs, {name}, throughput over 1"]["values"]) == 2
