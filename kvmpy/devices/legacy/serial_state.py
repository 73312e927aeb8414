"""What a serial port saves, and what it counts."""

from __future__ import annotations

from kvmpy.devices.state import BYTE, FLAG, State, integer, integers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

    from kvmpy.devices.state import Fields


class SerialState(State):
    """The registers of a serial port under their data-sheet names, at power-on unless given.

    `errors` holds LSR_OE to LSR_BI, `lines` the upper and `deltas` the lower half of MSR, `thre` whether the
    transmitter's interrupt is pending, `fifo` the received bytes, oldest first (0x100 is a break).
    """

    __slots__ = ("deltas", "dll", "dlm", "errors", "fcr", "fifo", "ier", "lcr", "lines", "mcr", "scr", "thre")

    FIELDS: ClassVar[Fields] = {
        "ier": integer(0, 0x0F), "fcr": BYTE, "lcr": BYTE, "mcr": integer(0, 0x1F), "scr": BYTE, "dll": BYTE,
        "dlm": BYTE, "errors": integer(0, 0x1E), "lines": BYTE, "deltas": integer(0, 0x0F), "thre": FLAG,
        "fifo": integers(0, 16, 0x100),
    }  # fmt: skip

    def __init__(
        self,
        *,
        ier: int = 0,
        fcr: int = 0,
        lcr: int = 0,
        mcr: int = 0,
        scr: int = 0,
        dll: int = 0,
        dlm: int = 0,
        errors: int = 0,
        lines: int = 0xB0,  # CTS, DSR and DCD: somebody is connected
        deltas: int = 0,
        thre: int = 0,
        fifo: Iterable[int] = (),
    ) -> None:
        self.ier = ier
        self.fcr = fcr
        self.lcr = lcr
        self.mcr = mcr
        self.scr = scr
        self.dll = dll
        self.dlm = dlm
        self.errors = errors
        self.lines = lines
        self.deltas = deltas
        self.thre = thre
        self.fifo = list(fifo)


class SerialStats:
    """Bytes `received` by the guest's port and `sent` by the guest, bytes lost to `overruns`, `interrupts` raised."""

    __slots__ = ("interrupts", "overruns", "received", "sent")

    def __init__(self, received: int = 0, sent: int = 0, overruns: int = 0, interrupts: int = 0) -> None:
        self.received = received
        self.sent = sent
        self.overruns = overruns
        self.interrupts = interrupts

    def copy(self) -> SerialStats:
        """The counts as they are now."""
        return SerialStats(self.received, self.sent, self.overruns, self.interrupts)
