"""Where a debugger has the machine stop, and why it stands still."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.outcome import Outcome
    from kvmpy.machine.script.debugger import Debugger

BREAKPOINT = "breakpoint"
STEP = "step"
PAUSE = "pause"
END = "end"


class Breakpoint:
    """A stop at `address` (linear); `physical` is where that was when it was set.  `remove` takes it away."""

    __slots__ = ("_debugger", "address", "hits", "original", "physical")

    def __init__(self, debugger: Debugger, address: int, physical: int) -> None:
        self._debugger = debugger
        self.address = address
        self.physical = physical
        self.hits = 0
        # The byte that stands in its place while the guest runs; None while it is where it belongs.
        self.original: int | None = None

    def remove(self) -> None:
        """The guest runs through from now on.  Twice is fine."""
        self._debugger.remove(self)

    def __repr__(self) -> str:
        return f"Breakpoint({self.address:#x}, hits={self.hits})"


class Stop:
    """Why the machine stands still: `reason` is BREAKPOINT, STEP, PAUSE or END.

    `vcpu` is the number of the vCPU that it is about and `address` the linear address of its next instruction;
    `breakpoint` the one that was hit, and `outcome` how the machine ended, each None for other reasons.
    """

    __slots__ = ("address", "breakpoint", "outcome", "reason", "vcpu")

    def __init__(
        self,
        reason: str,
        vcpu: int = 0,
        address: int = 0,
        breakpoint: Breakpoint | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        self.reason = reason
        self.vcpu = vcpu
        self.address = address
        self.breakpoint = breakpoint
        self.outcome = outcome

    def __repr__(self) -> str:
        return f"Stop({self.reason!r}, vcpu={self.vcpu}, address={self.address:#x})"
