"""What gdb's `monitor` says to kvmpy itself."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.machine.machine import Machine


def monitor(machine: Machine, line: str) -> str:
    """The answer to one command, in whole lines."""
    command = line.strip() or "help"
    found = _COMMANDS.get(command)
    if found is None:
        return f"there is no command {command[:40]!r}; try: monitor help\n"
    return found[0](machine)


def _help(_machine: Machine) -> str:
    return "".join(f"{name}: {text}\n" for name, (_, text) in _COMMANDS.items())


def _exits(machine: Machine) -> str:
    lines = []
    for number, vcpu in enumerate(machine.vcpus):
        exits = sorted(vcpu.stats.exits().items(), key=lambda item: -item[1])
        lines.append(f"vCPU {number}: {', '.join(f'{name} {count}' for name, count in exits) or 'none'}\n")
    return "".join(lines)


_COMMANDS: dict[str, tuple[Callable[[Machine], str], str]] = {
    "help": (_help, "what there is"),
    "exits": (_exits, "what each vCPU left the guest for, and how often"),
}
