"""The reset control register of a PC's chipset, port 0xcf9, which the FADT names as the reset register."""

from __future__ import annotations

from kvmpy.devices.registers import RegisterFile
from kvmpy.devices.state import BYTE, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from kvmpy.devices.state import Fields

SYS_RST = 0x02  # all of the machine, not only the processors
RST_CPU = 0x04  # resets
FULL_RST = 0x08  # the power too

_KEPT = SYS_RST | FULL_RST


class ResetState(State):
    """The register's `value`."""

    __slots__ = ("value",)

    FIELDS: ClassVar[Fields] = {"value": BYTE}

    def __init__(self, *, value: int = 0) -> None:
        self.value = value


class ResetControl(RegisterFile):
    """One port: `reset` is called when the guest sets RST_CPU, whichever kind of reset the other bits choose.

    RST_CPU reads as zero, since what it did is over.
    """

    __slots__ = ("_reset", "_value")

    def __init__(self, reset: Callable[[], object]) -> None:
        super().__init__()
        self._reset = reset
        self._value = 0

    def save(self) -> ResetState:
        """The register."""
        return ResetState(value=self._value)

    def restore(self, state: ResetState) -> None:
        """Takes over `state`; nothing is reset by it."""
        self._value = state.value & _KEPT

    def _read(self) -> int:
        return self._value

    def _write(self, value: int) -> None:
        self._value = value & _KEPT
        if value & RST_CPU:
            self._later.append((self._reset, ()))

    READERS = (_read,)
    WRITERS = (_write,)
