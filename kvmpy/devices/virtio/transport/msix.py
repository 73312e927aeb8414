"""MSI-X (PCI Local Bus 3.0, 6.8.2): a table of messages, each with its mask, and the array of those that wait."""

from __future__ import annotations

import struct
from threading import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PCI_CAP_ID_MSIX = 0x11

# Message control, the capability's first word.
MSIX_ENABLE = 1 << 15
MSIX_MASK_ALL = 1 << 14

ENTRY_SIZE = 16
_ENTRY = struct.Struct("<QII")
_CONTROL = 12
_MASKED = 1

MAX_VECTORS = 2048


class Msix:
    """`vectors` messages, which are off and masked at first; `send(vector, address, data)` sends one, and never blocks.

    A message that comes while it may not be sent waits until it may.
    """

    def __init__(self, vectors: int, send: Callable[[int, int, int], object]) -> None:
        if not 0 < vectors <= MAX_VECTORS:
            raise ValueError(f"{vectors} vectors are not 1 to {MAX_VECTORS}")
        self.vectors = vectors
        self.enabled = False
        self._all_masked = False
        self._send = send
        self._lock = Lock()
        self._table = bytearray(_ENTRY.pack(0, 0, _MASKED) * vectors)
        self._pending = bytearray(vectors + 63 & ~63)  # a byte each

    def capability(self, bar: int, table: int, pending: int) -> tuple[bytes, bytes]:
        """What follows the capability's first two bytes, and the bits of it that the guest sets.

        The table and the pending array are at these offsets, multiples of 8, of the memory behind `bar`.
        """
        body = struct.pack("<HII", self.vectors - 1, table | bar, pending | bar)
        return body, struct.pack("<H", MSIX_ENABLE | MSIX_MASK_ALL)

    def set_control(self, control: int) -> None:
        """The guest wrote the message control."""
        with self._lock:
            self.enabled = bool(control & MSIX_ENABLE)
            self._all_masked = bool(control & MSIX_MASK_ALL)
            for vector in range(self.vectors):
                self._send_pending(vector)

    def trigger(self, vector: int) -> None:
        """Sends the message of `vector`, at once or when its mask is gone; nothing while MSI-X is off."""
        with self._lock:
            if self.enabled and vector < self.vectors:
                self._pending[vector] = 1
                self._send_pending(vector)

    def _send_pending(self, vector: int) -> None:
        if not self._pending[vector] or not self.enabled or self._all_masked:
            return
        address, data, control = _ENTRY.unpack_from(self._table, ENTRY_SIZE * vector)
        if not control & _MASKED:
            self._pending[vector] = 0
            self._send(vector, address, data)

    def read_table(self, offset: int, data: memoryview) -> None:
        """Reads the table; behind its end are zeroes."""
        found = self._table[offset : offset + len(data)]
        data[:] = bytes(found).ljust(len(data), b"\0")

    def write_table(self, offset: int, data: memoryview) -> None:
        """Writes to the table in words of 4 or 8 bytes; others, and those behind its end, are lost."""
        size = len(data)
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return
        with self._lock:
            self._table[offset : offset + size] = data
            vector = offset // ENTRY_SIZE
            control = ENTRY_SIZE * vector + _CONTROL
            self._table[control : control + 4] = bytes([self._table[control] & _MASKED, 0, 0, 0])
            self._send_pending(vector)

    def read_pending(self, offset: int, data: memoryview) -> None:
        """Reads the pending bits; behind their end are zeroes."""
        with self._lock:
            bits = sum(1 << vector for vector, waits in enumerate(self._pending) if waits)
        found = bits.to_bytes(len(self._pending) // 8, "little")[offset : offset + len(data)]
        data[:] = found.ljust(len(data), b"\0")
