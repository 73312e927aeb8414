"""The 16550A serial port (National Semiconductor PC16550D data sheet; register names as Linux has them).

The line behind it is infinitely fast: what the guest sends is gone at once, so the transmitter is always empty,
and what waits in the receive FIFO below the trigger level counts as timed out at once.

In one thing this port is kinder than the data sheet: switching the FIFO on or off keeps what was received, where the
chip forgets it.  Linux lets received data interrupt it just before it switches the FIFO on, and a byte that came in
between would be lost to every guest that starts with input waiting.
"""

from __future__ import annotations

from kvmpy.devices.legacy.serial_registers import (
    FCR_CLEAR_RCVR,
    FCR_DMA_SELECT,
    FCR_ENABLE_FIFO,
    FCR_TRIGGER_MASK,
    FIFO_SIZE,
    IER_MSI,
    IER_RDI,
    IER_RLSI,
    IER_THRI,
    IIR_FIFO_ENABLED,
    IIR_MSI,
    IIR_NO_INT,
    IIR_RDI,
    IIR_RLSI,
    IIR_RX_TIMEOUT,
    IIR_THRI,
    LCR_DLAB,
    LSR_BI,
    LSR_DR,
    LSR_FE,
    LSR_FIFOE,
    LSR_OE,
    LSR_PE,
    LSR_TEMT,
    LSR_THRE,
    MCR_DTR,
    MCR_LOOP,
    MCR_OUT1,
    MCR_OUT2,
    MCR_RTS,
    MSR_LINES,
    MSR_RI,
    TRIGGER_LEVELS,
    SerialState,
    SerialStats,
)
from kvmpy.devices.registers import RegisterFile, ignore_write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.irq import InterruptLine

__all__ = ["Serial", "SerialState", "SerialStats"]

# A driver asks the line status once for each byte that it sends, and a few times while it looks at the port.  Whoever
# asks so often without sending waits for input.
POLLS = 32

_BREAK = 0x100  # marks a zero byte in the FIFO that was a break


class Serial(RegisterFile):
    """One serial port.

    `irq` gets the level of the interrupt pin; `output` gets what the guest sends, a byte a call, outside of the
    lock.  `on_room`, when set, is called outside of the lock once the guest has made room after a `receive` that
    could not place all; it may call `receive`.
    """

    __slots__ = (
        "_breaks", "_dll", "_dlm", "_errors", "_fcr", "_fifo", "_ier", "_irq", "_lcr", "_level", "_lines", "_mcr",
        "_msr_deltas", "_polls", "_scr", "_stats", "_thre", "_wanted", "on_room", "output",
    )  # fmt: skip

    _dll: int
    _dlm: int
    _errors: int
    _fcr: int
    _fifo: list[int]
    _ier: int
    _lcr: int
    _lines: int
    _mcr: int
    _msr_deltas: int
    _polls: int
    _scr: int
    _thre: bool

    def __init__(self, irq: InterruptLine, output: Callable[[bytes], object]) -> None:
        super().__init__()
        self._irq = irq
        self.output = output
        self.on_room: Callable[[], object] | None = None
        self._stats = SerialStats()
        self._wanted = False
        self._polls = 0
        self._level = False
        self._load(SerialState())

    # The host's side.

    def receive(self, data: bytes | bytearray | memoryview) -> int:
        """Places bytes that came in from the line; returns how many there was room for, none in loopback mode.

        The rest is the caller's to keep until `on_room` is called.
        """
        with self._lock:
            taken = 0 if self._mcr & MCR_LOOP else min(self._room(), len(data))
            self._wanted = taken < len(data)
            if taken:
                self._fifo += data[:taken]
                self._stats.received += taken
                self._update()
            return taken

    def receive_break(self) -> bool:
        """Puts a break on the line: a zero byte with LSR_BI.  False when there was no room for it."""
        with self._lock:
            if self._mcr & MCR_LOOP or not self._room():
                return False
            self._fifo.append(_BREAK)
            self._breaks += 1
            self._reveal()
            self._update()
            return True

    def set_modem(self, lines: int) -> None:
        """Says which of MSR_CTS, MSR_DSR, MSR_RI and MSR_DCD the other end holds up (at first all but MSR_RI)."""
        with self._lock:
            before = self._modem_lines()
            self._lines = lines & MSR_LINES
            self._note_modem_change(before)

    @property
    def listening(self) -> bool:
        """Whether the guest waits for input: by received-data interrupts, or by asking the line status again and again.

        Before that, a driver's first FIFO reset throws away what was received; `on_room` is called when this turns
        true.  Interrupts count only once they can get out: Linux tries all bits of IER to see what chip this is, and
        raises OUT2 when it means them.
        """
        return bool(self._ier & IER_RDI and self._mcr & MCR_OUT2) or self._polls >= POLLS

    def stats(self) -> SerialStats:
        """What went through until now, as a copy."""
        with self._lock:
            return self._stats.copy()

    def save(self) -> SerialState:
        """The registers and the receive FIFO, as a copy."""
        with self._lock:
            return SerialState(
                ier=self._ier, fcr=self._fcr, lcr=self._lcr, mcr=self._mcr, scr=self._scr, dll=self._dll, dlm=self._dlm,
                errors=self._errors, lines=self._lines, deltas=self._msr_deltas, thre=int(self._thre),
                fifo=list(self._fifo),
            )  # fmt: skip

    def restore(self, state: SerialState) -> None:
        """Takes over `state` and sets the interrupt line anew; `SerialState()` is a reset."""
        with self._lock:
            self._load(state)
            self._level = self._pin()
            self._irq.set(self._level)

    # The registers.

    def write(self, offset: int, data: memoryview) -> None:
        """Writes the bytes of `data` to the registers from `offset` on."""
        # Nearly every access is one byte to the transmitter.
        if offset or len(data) != 1:
            super().write(offset, data)
            return
        self._lock.acquire()
        try:
            sent = self._transmit(data[0])
        finally:
            self._lock.release()
        if sent:
            self.output(data.tobytes())

    def _read_rbr(self) -> int:
        if self._lcr & LCR_DLAB:
            return self._dll
        fifo = self._fifo
        if not fifo:
            return 0
        value = fifo.pop(0)
        if fifo:
            self._reveal()
        else:
            self._offer_room()
        self._update()
        return value

    def _write_thr(self, value: int) -> None:
        if self._transmit(value):
            self._later.append((self.output, (bytes((value,)),)))

    def _read_ier(self) -> int:
        return self._dlm if self._lcr & LCR_DLAB else self._ier

    def _write_ier(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._dlm = value
            return
        listened = self.listening
        # The transmitter is always empty, so enabling its interrupt raises it, each time anew (Linux tests that).
        if value & ~self._ier & IER_THRI:
            self._thre = True
        self._ier = value & 0x0F
        self._polls = 0
        self._note_listening(listened)
        self._update()

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_THRI:
            self._thre = False
            self._update()
        return cause | (IIR_FIFO_ENABLED if self._fcr & FCR_ENABLE_FIFO else 0)

    def _write_fcr(self, value: int) -> None:
        # The other bits are taken only together with the enable bit; the clearing ones do not stay.
        if not value & FCR_ENABLE_FIFO:
            value = 0
        if value & FCR_CLEAR_RCVR:
            self._fifo.clear()
            self._breaks = 0
        if (value ^ self._fcr) & FCR_ENABLE_FIFO or value & FCR_CLEAR_RCVR:
            self._polls = 0
            self._offer_room()
        self._fcr = value & (FCR_ENABLE_FIFO | FCR_DMA_SELECT | FCR_TRIGGER_MASK)
        self._update()

    def _read_lcr(self) -> int:
        return self._lcr

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _read_mcr(self) -> int:
        return self._mcr

    def _write_mcr(self, value: int) -> None:
        before = self._modem_lines()
        listened, looped = self.listening, self._mcr & MCR_LOOP
        self._mcr = value & 0x1F
        if looped:
            self._offer_room()
        self._note_listening(listened)
        self._note_modem_change(before)

    def _read_lsr(self) -> int:
        value = LSR_THRE | LSR_TEMT | self._errors
        if self._fifo:
            value |= LSR_DR
        if self._fcr & FCR_ENABLE_FIFO and (self._breaks or self._errors & LSR_BI):
            value |= LSR_FIFOE
        if self._errors:
            self._errors = 0
            self._update()
        self._polls += 1
        if self._polls == POLLS:
            self._note_listening(False)
        return value

    def _read_msr(self) -> int:
        value = self._modem_lines() | self._msr_deltas
        if self._msr_deltas:
            self._msr_deltas = 0
            self._update()
        return value

    def _read_scr(self) -> int:
        return self._scr

    def _write_scr(self, value: int) -> None:
        self._scr = value

    READERS = (_read_rbr, _read_ier, _read_iir, _read_lcr, _read_mcr, _read_lsr, _read_msr, _read_scr)
    WRITERS = (_write_thr, _write_ier, _write_fcr, _write_lcr, _write_mcr, ignore_write, ignore_write, _write_scr)

    # Inside, with the lock held.

    def _load(self, state: SerialState) -> None:
        self._ier = state.ier
        self._fcr = state.fcr
        self._lcr = state.lcr
        self._mcr = state.mcr
        self._scr = state.scr
        self._dll = state.dll
        self._dlm = state.dlm
        self._errors = state.errors & (LSR_OE | LSR_PE | LSR_FE | LSR_BI)
        self._lines = state.lines & MSR_LINES
        self._msr_deltas = state.deltas
        self._thre = bool(state.thre)
        self._fifo = list(state.fifo)
        self._breaks = sum(1 for value in self._fifo if value & _BREAK)
        if self._fifo:
            self._reveal()

    def _room(self) -> int:
        return max((FIFO_SIZE if self._fcr & FCR_ENABLE_FIFO else 1) - len(self._fifo), 0)

    def _offer_room(self) -> None:
        if self._wanted and self.on_room is not None and not self._mcr & MCR_LOOP:
            self._wanted = False
            self._later.append((self.on_room, ()))

    def _note_listening(self, before: bool) -> None:
        if self.listening and not before:
            self._wanted = True
            self._offer_room()

    def _transmit(self, value: int) -> bool:
        """What a write of THR or DLL does here; True when the byte goes out."""
        if self._lcr & LCR_DLAB:
            self._dll = value
            return False
        self._polls = 0
        looped = self._mcr & MCR_LOOP
        if looped:
            self._loop(value)
        else:
            self._stats.sent += 1
        self._thre = True
        # With no interrupt enabled, no line can change.
        if self._ier:
            self._update()
        return not looped

    def _loop(self, value: int) -> None:
        """The byte comes back in; when there is no room, a FIFO loses the new byte and a lone buffer the old."""
        if self._room():
            self._fifo.append(value)
            return
        self._errors |= LSR_OE
        self._stats.overruns += 1
        if not self._fcr & FCR_ENABLE_FIFO:
            self._fifo[0] = value

    def _reveal(self) -> None:
        """A break shows in the line status once its byte is the next to be read."""
        if self._fifo[0] & _BREAK:
            self._fifo[0] = 0
            self._breaks -= 1
            self._errors |= LSR_BI

    def _modem_lines(self) -> int:
        mcr = self._mcr
        if not mcr & MCR_LOOP:
            return self._lines
        # Loopback wires RTS to CTS, DTR to DSR, OUT1 to RI and OUT2 to DCD.
        return (mcr & MCR_RTS) << 3 | (mcr & MCR_DTR) << 5 | (mcr & (MCR_OUT1 | MCR_OUT2)) << 4

    def _note_modem_change(self, before: int) -> None:
        now = self._modem_lines()
        changed = (before ^ now) & ~MSR_RI | before & ~now & MSR_RI
        self._msr_deltas |= changed >> 4
        self._update()

    def _cause(self) -> int:
        """The pending interrupt of the highest priority, as in the IIR (data sheet, table V)."""
        ier = self._ier
        if ier & IER_RLSI and self._errors:
            return IIR_RLSI
        if ier & IER_RDI and self._fifo:
            if self._fcr & FCR_ENABLE_FIFO and len(self._fifo) < TRIGGER_LEVELS[self._fcr >> 6]:
                return IIR_RX_TIMEOUT
            return IIR_RDI
        if ier & IER_THRI and self._thre:
            return IIR_THRI
        if ier & IER_MSI and self._msr_deltas:
            return IIR_MSI
        return IIR_NO_INT

    def _pin(self) -> bool:
        # Loopback mode forces the OUT2 pin off, whatever its bit says.
        return self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 and self._cause() != IIR_NO_INT

    def _update(self) -> None:
        level = self._pin()
        if level != self._level:
            self._level = level
            self._stats.interrupts += level
            self._irq.set(level)
