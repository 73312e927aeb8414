"""A PCI function: configuration space, base address registers, interrupt pin.

Where its BARs appear is the business of a mapper, a collaborator; so a function knows no bus.
"""

from __future__ import annotations

from threading import Lock

from kvmpy.devices.pci.config import (
    BAR0,
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_IO,
    COMMAND_MEMORY,
    DEVICE_ID,
    INTERRUPT_PIN,
    STATUS,
    STATUS_INTERRUPT,
    VENDOR_ID,
    ConfigSpace,
)
from kvmpy.devices.state import State, hexadecimal, integer
from kvmpy.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar, Protocol

    from kvmpy.bus import Device
    from kvmpy.devices.state import Fields
    from kvmpy.irq import InterruptLine

    class BarMapper(Protocol):
        """Makes BARs appear in the machine's address spaces."""

        def map(self, bar: Bar, address: int, size: int) -> None:
            """`bar.device` answers `size` bytes from `address` on; never raises, whatever the address."""

        def unmap(self, bar: Bar) -> None:
            """Undoes `map`; nothing where it had not been possible."""


# Kinds of BAR.
IO = "io"
MEMORY32 = "memory32"
MEMORY64 = "memory64"

BARS = 6

_BAR_IO = 0x1
_BAR_64 = 0x4
_BAR_PREFETCHABLE = 0x8

_LOW_SIZE = {IO: 4, MEMORY32: 16, MEMORY64: 16}  # the least sizes that the flags' bits leave room for
_MAX_SIZE = {IO: 1 << 8, MEMORY32: 1 << 31, MEMORY64: 1 << 51}


class Bar:
    """Base address register `index`: `size` bytes (a power of two) of ports or memory that `device` answers.

    `kind` is IO, MEMORY32 or MEMORY64, which takes the next register too.  `address` is where it is mapped, or None.
    """

    __slots__ = ("address", "device", "index", "kind", "prefetchable", "size")

    def __init__(self, index: int, size: int, device: Device, *, kind: str = MEMORY32, prefetchable: bool = False):
        if size & size - 1 or not _LOW_SIZE[kind] <= size <= _MAX_SIZE[kind]:
            raise ValueError(f"a BAR of kind {kind} cannot be {size} bytes long")
        if not 0 <= index <= BARS - (2 if kind == MEMORY64 else 1):
            raise ValueError(f"there is no BAR {index} of kind {kind}")
        self.index = index
        self.size = size
        self.device = device
        self.kind = kind
        self.prefetchable = prefetchable
        self.address: int | None = None

    @property
    def offset(self) -> int:
        """Where it is in configuration space."""
        return BAR0 + 4 * self.index

    @property
    def width(self) -> int:
        """Its bytes in configuration space."""
        return 8 if self.kind == MEMORY64 else 4

    def __repr__(self) -> str:
        where = "unmapped" if self.address is None else f"at {self.address:#x}"
        return f"Bar({self.index}, {self.kind}, {self.size:#x} bytes, {where})"


class PciFunctionState(State):
    """`ids` as vendor | device << 16, and the bits of configuration space that a guest can change, in hexadecimal."""

    __slots__ = ("config", "ids")

    FIELDS: ClassVar[Fields] = {
        "ids": integer(0, 0xFFFFFFFF),
        "config": hexadecimal,
    }

    def __init__(self, *, ids: int, config: str) -> None:
        self.ids = ids
        self.config = config


class PciFunction:
    """One function of a device, around its configuration space `config`.

    `mapper` shows its BARs to the guest; without one they only answer the sizing protocol.  `intx` is what its
    interrupt pin leads to, and `pin` that pin: 1 is INTA#.  Its lock is held while the mapper is called.
    """

    def __init__(
        self,
        config: ConfigSpace,
        *,
        mapper: BarMapper | None = None,
        intx: InterruptLine | None = None,
        pin: int = 1,
    ) -> None:
        self.config = config
        self.bars: list[Bar] = []
        self._mapper = mapper
        self._intx = intx
        self._interrupt = False
        self._lock = Lock()
        self._watches: list[tuple[int, int, Callable[[], object]]] = []
        if intx is not None:
            config.define(INTERRUPT_PIN, 1, pin)

    def add_bar(self, bar: Bar) -> None:
        """Gives the function a BAR, before the guest runs; `ValueError` where another one is."""
        taken = {other.offset + at for other in self.bars for at in range(0, other.width, 4)}
        if taken & {bar.offset + at for at in range(0, bar.width, 4)}:
            raise ValueError(f"BAR {bar.index} is taken")
        flags = _BAR_IO if bar.kind == IO else _BAR_PREFETCHABLE * bar.prefetchable
        flags |= _BAR_64 if bar.kind == MEMORY64 else 0
        # The sizing protocol (6.2.5.1): address bits below the size are zero, whatever is written.
        writable = (1 << 8 * bar.width) - bar.size
        self.config.define(bar.offset, bar.width, flags, writable=writable)
        self.bars.append(bar)

    def watch(self, offset: int, size: int, changed: Callable[[], object]) -> None:
        """Calls `changed` after each write of the guest that touches `size` bytes at `offset`, with no lock held."""
        self._watches.append((offset, offset + size, changed))

    def read_config(self, offset: int, data: memoryview) -> None:
        """Fills `data` from configuration space; what lies past its end reads as zero (PCI Express 5.0, 7.2.1)."""
        with self._lock:
            found = self.config.bytes[offset : offset + len(data)]
        data[:] = found + bytes(len(data) - len(found))

    def write_config(self, offset: int, data: memoryview) -> None:
        """Takes the guest's write to configuration space."""
        end = min(offset + len(data), self.config.size)
        if offset >= end:
            return
        with self._lock:
            self.config.write(offset, data[: end - offset])
            if offset < BAR0 + 4 * BARS and end > COMMAND:
                self._place_bars()
                self._drive_intx()
        for first, last, changed in self._watches:
            if offset < last and first < end:
                changed()

    def set_interrupt(self, level: bool) -> None:
        """The level of its INTx interrupt, before the guest's mask."""
        with self._lock:
            self._interrupt = level
            self._drive_intx()

    def save(self) -> PciFunctionState:
        """What the guest has set up; the device's own state is the device's."""
        with self._lock:
            return PciFunctionState(ids=self._ids(), config=self.config.volatile().hex())

    def restore(self, state: PciFunctionState) -> None:
        """Takes over `state` and maps the BARs; an `ImageError` if it is another function's."""
        with self._lock:
            saved = bytes.fromhex(state.config)
            if state.ids != self._ids() or len(saved) != self.config.size:
                raise ImageError("the saved PciFunctionState is of another device")
            self.config.set_volatile(saved)
            self._place_bars()
            self._drive_intx()

    # Inside, with the lock held.

    def _ids(self) -> int:
        return self.config.get(VENDOR_ID, 2) | self.config.get(DEVICE_ID, 2) << 16

    def _place_bars(self) -> None:
        command = self.config.get(COMMAND, 2)
        for bar in self.bars:
            address = self._address_of(bar) if command & (COMMAND_IO if bar.kind == IO else COMMAND_MEMORY) else None
            if address == bar.address:
                continue
            if self._mapper is not None and bar.address is not None:
                self._mapper.unmap(bar)
            bar.address = address
            if self._mapper is not None and address is not None:
                self._mapper.map(bar, address, bar.size)

    def _address_of(self, bar: Bar) -> int | None:
        """Where the guest wants it: not at 0 (not set yet), and not at the top, which is where sizing puts it."""
        address = self.config.get(bar.offset, bar.width) & -bar.size
        top = (1 << 16 if bar.kind == IO else 1 << 8 * bar.width) - bar.size
        return address if 0 < address < top else None

    def _drive_intx(self) -> None:
        if self._intx is not None:
            self.config.set_bits(STATUS, STATUS_INTERRUPT, self._interrupt)
            self._intx.set(self._interrupt and not self.config.get(COMMAND, 2) & COMMAND_INTX_DISABLE)
