"""The JSON that `--report` writes: how a machine ended, when it got where, and what it left the guest for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kvmpy.errors import HostError
from kvmpy.units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmpy.config.machine import MachineConfig
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.outcome import Outcome
    from kvmpy.machine.timeline import Timeline


def describe(config: MachineConfig, outcome: Outcome, timeline: Timeline, machine: Machine | None) -> dict[str, Any]:
    """The report as plain data; `machine` is None where it could not be built."""
    exits: dict[str, int] = {}
    ports: dict[int, int] = {}
    mmio: dict[int, int] = {}
    profile = None
    virtio: list[dict[str, Any]] = []
    if machine is not None:
        for vcpu in machine.vcpus:
            _add(exits, vcpu.stats.exits())
            _add(ports, vcpu.stats.ports)
            _add(mmio, vcpu.stats.mmio)
        profile = machine.profile
        virtio = [transport.describe() for transport in machine.virtio]
        if machine.tap.first_byte is not None:
            timeline.mark("first_console_byte", machine.tap.first_byte)
    return {
        "exit": {"status": outcome.status, "reason": outcome.reason, "message": outcome.message},
        "timeline_ms": timeline.milliseconds(),
        "exits": exits,
        "ports": _by_address(ports),
        "mmio": _by_address(mmio),
        "host_profile": None
        if profile is None
        else {
            "kind": profile.kind,
            "ring0_ns": profile.ring0_ns,
            "ring3_ns": profile.ring3_ns,
            "pio_exit_ns": profile.pio_exit_ns,
        },
        "virtio": virtio,
        "vcpus": config.vcpus,
        "memory_mib": config.memory // MIB if config.memory % MIB == 0 else config.memory / MIB,
    }


def write_report(
    path: str, config: MachineConfig, outcome: Outcome, timeline: Timeline, machine: Machine | None
) -> None:
    """Writes `describe` to `path`; `HostError` where that fails."""
    text = json.dumps(describe(config, outcome, timeline, machine), indent=2)
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text + "\n")
    except OSError as error:
        raise HostError(f"write {path}", error.errno or 0) from error


def _add(total: dict[Any, int], part: Mapping[Any, int]) -> None:
    for key, count in part.items():
        total[key] = total.get(key, 0) + count


def _by_address(counts: Mapping[int, int]) -> dict[str, int]:
    """Addresses in hex, in order; a negative key counts all those that were too many to count one by one."""
    return {hex(key) if key >= 0 else "other": counts[key] for key in sorted(counts, key=lambda key: key % (1 << 65))}
