"""The wire: packets as `$data#checksum`, acknowledgements, and the interrupt byte.

GDB manual, "Remote Protocol: Overview".  Run-length encoding is the stub's choice, and not ours.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PACKET = 16 << 10
"""Bytes between `$` and `#`, escapes counted, in either direction."""

ACK = b"+"
NAK = b"-"

INTERRUPT = "interrupt"
ACKNOWLEDGED = "acknowledged"
REFUSED = "refused"
DAMAGED = "damaged"
OVERSIZED = "oversized"

_START, _END, _ESCAPE = b"$#}"
_INTERRUPT = 0x03
_SINGLE = {_INTERRUPT: INTERRUPT, ACK[0]: ACKNOWLEDGED, NAK[0]: REFUSED}

# An escaped byte has its bit 5 turned over; `*` would start a run.
_FLIP = 0x20
_TO_ESCAPE = re.compile(rb"[$#}*]")
_ESCAPED = re.compile(rb"}(.?)", re.DOTALL)


def checksum(data: bytes) -> int:
    """The sum of the bytes as they travel, modulo 256."""
    return sum(data) & 0xFF


def escape(data: bytes) -> bytes:
    """`data` with the bytes that mean something on the wire escaped."""
    return _TO_ESCAPE.sub(lambda match: bytes([_ESCAPE, match[0][0] ^ _FLIP]), data)


def unescape(data: bytes) -> bytes:
    """What `escape` was given; an escape at the very end stands for nothing."""
    return _ESCAPED.sub(lambda match: bytes([match[1][0] ^ _FLIP]) if match[1] else b"", data)


def encode(data: bytes) -> bytes:
    """The packet that carries `data`."""
    body = escape(data)
    return b"$%b#%02x" % (body, checksum(body))


class PacketReader:
    """Takes bytes as they come, and gives what they mean.  Holds at most one packet, whatever it is fed."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | str]:
        """The data of each packet that is complete now, unescaped, as bytes; and as a word what else there was.

        INTERRUPT, ACKNOWLEDGED and REFUSED are single bytes between packets; DAMAGED is a packet with a wrong
        checksum, OVERSIZED one longer than `MAX_PACKET`.  Other bytes between packets are passed over.
        """
        buffer = self._buffer
        for start in range(0, len(data), MAX_PACKET):
            buffer += data[start : start + MAX_PACKET]
            yield from self._complete()

    def _complete(self) -> Iterator[bytes | str]:
        buffer = self._buffer
        while buffer:
            if buffer[0] != _START:
                byte = buffer.pop(0)
                if byte in _SINGLE:
                    yield _SINGLE[byte]
                continue
            end = buffer.find(_END, 1)
            if end < 0 or len(buffer) < end + 3:
                cut = end if end >= 0 else len(buffer)
                if cut - 1 > MAX_PACKET:
                    self._skipping = True
                    del buffer[1:cut]
                return
            body, digits = bytes(buffer[1:end]), bytes(buffer[end + 1 : end + 3])
            del buffer[: end + 3]
            skipped, self._skipping = self._skipping, False
            if skipped or len(body) > MAX_PACKET:
                yield OVERSIZED
                continue
            # A packet that lost its end runs into the next one's start.
            body = body.rpartition(b"$")[2]
            yield unescape(body) if digits.lower() == b"%02x" % checksum(body) else DAMAGED
