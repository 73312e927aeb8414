"""pvpanic: how a guest's kernel says that it has panicked (QEMU's docs/specs/pvpanic)."""

from __future__ import annotations

from kvmpy.devices.registers import RegisterFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PANICKED = 0x01
CRASH_LOADED = 0x02  # it goes on into a kernel that saves the crash


class PvPanic(RegisterFile):
    """One port: reading it tells which events it takes, writing an event's bit calls `on_panic` or `on_crash_loaded`.

    Without `on_crash_loaded` only panics are offered.  There is nothing to save: it keeps no state.
    """

    __slots__ = ("_on_crash_loaded", "_on_panic")

    def __init__(
        self, on_panic: Callable[[], object], on_crash_loaded: Callable[[], object] | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self._on_panic = on_panic
        self._on_crash_loaded = on_crash_loaded

    def _read(self) -> int:
        return PANICKED if self._on_crash_loaded is None else PANICKED | CRASH_LOADED

    def _write(self, value: int) -> None:
        if value & PANICKED:
            self._later.append((self._on_panic, ()))
        if value & CRASH_LOADED and self._on_crash_loaded is not None:
            self._later.append((self._on_crash_loaded, ()))

    READERS = (_read,)
    WRITERS = (_write,)
