"""The registers of a 16550A serial port: offsets and bits, named as Linux names them; what it saves and counts."""

from __future__ import annotations

from kvmpy.devices.state import BYTE, FLAG, State, integer, integers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

    from kvmpy.devices.state import Fields

# Register offsets.  Some are one register when read, another when written, and a third while LCR_DLAB is set.
RBR = THR = DLL = 0  # receiver buffer, transmitter holding, divisor latch (low)
IER = DLM = 1  # interrupt enable, divisor latch (high)
IIR = FCR = 2  # interrupt identification, FIFO control
LCR = 3  # line control
MCR = 4  # modem control
LSR = 5  # line status
MSR = 6  # modem status
SCR = 7  # scratch

SERIAL_PORTS = 8

IER_RDI = 0x01  # received data (the data sheet's ERBFI)
IER_THRI = 0x02  # transmitter holding register empty (ETBEI)
IER_RLSI = 0x04  # receiver line status (ELSI)
IER_MSI = 0x08  # modem status (EDSSI)

IIR_NO_INT = 0x01
IIR_MSI = 0x00
IIR_THRI = 0x02
IIR_RDI = 0x04
IIR_RLSI = 0x06
IIR_RX_TIMEOUT = 0x0C
IIR_FIFO_ENABLED = 0xC0

FCR_ENABLE_FIFO = 0x01
FCR_CLEAR_RCVR = 0x02
FCR_CLEAR_XMIT = 0x04
FCR_DMA_SELECT = 0x08
FCR_TRIGGER_MASK = 0xC0

LCR_WLEN8 = 0x03
LCR_SBC = 0x40  # set break control
LCR_DLAB = 0x80  # divisor latch access

MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08  # on a PC, this pin lets the interrupt out to the bus
MCR_LOOP = 0x10

LSR_DR = 0x01  # data ready
LSR_OE = 0x02  # overrun
LSR_PE = 0x04  # parity error
LSR_FE = 0x08  # framing error
LSR_BI = 0x10  # break
LSR_THRE = 0x20  # transmitter holding register empty
LSR_TEMT = 0x40  # transmitter empty
LSR_FIFOE = 0x80  # an error or a break is somewhere in the FIFO

MSR_DCTS = 0x01
MSR_DDSR = 0x02
MSR_TERI = 0x04  # ring indicator went off
MSR_DDCD = 0x08
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
MSR_DELTAS = MSR_DCTS | MSR_DDSR | MSR_TERI | MSR_DDCD
MSR_LINES = MSR_CTS | MSR_DSR | MSR_RI | MSR_DCD

FIFO_SIZE = 16
TRIGGER_LEVELS = (1, 4, 8, 14)  # by FCR_TRIGGER_MASK >> 6


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
