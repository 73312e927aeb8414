"""Fake collaborators of devices, for tests: they record what the device did to them."""

from __future__ import annotations


class FakeLine:
    """An interrupt line that keeps its `level` and every level that it was set to, in `history`."""

    def __init__(self) -> None:
        self.level = False
        self.history: list[bool] = []

    def set(self, level: bool) -> None:
        """Takes the device's output level."""
        self.level = level
        self.history.append(level)

    @property
    def edges(self) -> int:
        """How often the level rose."""
        return sum(now and not before for before, now in zip([False, *self.history], self.history, strict=False))


class FakeClock:
    """A clock that stands at `now` (seconds since 1970) until it is moved."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Moves the clock forwards."""
        self.now += seconds


class Ports:
    """The guest's `in` and `out` on a device, with offsets in place of ports."""

    def __init__(self, device: object) -> None:
        self.device = device

    def inb(self, offset: int) -> int:
        """One byte."""
        return self.read(offset, 1)[0]

    def outb(self, offset: int, value: int) -> None:
        """One byte."""
        self.write(offset, bytes([value]))

    def read(self, offset: int, length: int) -> bytes:
        """An access `length` bytes wide; what the device leaves untouched shows as 0xa5."""
        data = bytearray(b"\xa5" * length)
        self.device.read(offset, memoryview(data))  # type: ignore[attr-defined]
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """An access as wide as `data`."""
        self.device.write(offset, memoryview(bytearray(data)))  # type: ignore[attr-defined]
