"""Devices of one's own with declared registers: the offsets, the sizes and what happens, and nothing else to write.

    class Timer(RegisterDevice):
        control = Register(0, 4)
        ticks = Register(4, 4, read=lambda self: int(time.monotonic() * 1000))

        @control.on_write
        def start(self, value):
            print("started" if value & 1 else "stopped")

    machine.mmio.add(0x10000000, Timer.size, Timer())

Any device is an object with `read(offset, data)` and `write(offset, data)`; this is one way to make them.
"""

from __future__ import annotations

from threading import RLock

from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Reader = Callable[[Any], int]
    Writer = Callable[[Any, int], object]


class Register:
    """A register of `size` bytes at `offset`, little-endian, that starts as `reset`.

    It is a number that the guest reads and writes, and that the device has as an attribute.  `read(device)` answers the
    guest in its stead; `write(device, value)` is called after the guest wrote it; `on_read` and `on_write` are
    decorators for the same.  With `readonly` the guest's writes are void.
    """

    def __init__(
        self,
        offset: int,
        size: int = 4,
        *,
        reset: int = 0,
        readonly: bool = False,
        read: Reader | None = None,
        write: Writer | None = None,
    ) -> None:
        if offset < 0 or size <= 0:
            raise ConfigError("register", f"{size} bytes at offset {offset} is no register")
        self.offset = offset
        self.size = size
        self.end = offset + size
        self.reset = reset
        self.readonly = readonly
        self.name = ""
        self._mask = (1 << 8 * size) - 1
        self._read = read
        self._write = write

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, device: Any, owner: type | None = None) -> Any:
        return self if device is None else device._values[self]

    def __set__(self, device: Any, value: int) -> None:
        device._values[self] = value & self._mask

    def __repr__(self) -> str:
        return f"Register({self.name} at {self.offset:#x}, {self.size} bytes)"

    def on_read(self, function: Reader) -> Reader:
        """Decorates a method that says what the guest reads."""
        self._read = function
        return function

    def on_write(self, function: Writer) -> Writer:
        """Decorates a method that is called with what the guest wrote, after it was stored."""
        self._write = function
        return function

    def guest_read(self, device: Any) -> int:
        """What the guest sees."""
        return self._mask & (self._read(device) if self._read is not None else device._values[self])

    def guest_write(self, device: Any, value: int) -> None:
        """What the guest's write does."""
        if not self.readonly:
            device._values[self] = value & self._mask
            if self._write is not None:
                self._write(device, value & self._mask)


class RegisterDevice:
    """A device made of the `Register`s that its class declares; `size` is where the last of them ends.

    An access may have any width and may touch several registers, or a part of one, which keeps the rest of its value.
    What no register has reads as ones and swallows writes.  One vCPU at a time is let in.
    """

    registers: tuple[Register, ...] = ()
    size = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        found = {value.name: value for one in reversed(cls.__mro__) for value in vars(one).values() if _is(value)}
        cls.registers = tuple(sorted(found.values(), key=lambda register: register.offset))
        cls.size = max((register.end for register in cls.registers), default=0)
        for one, other in zip(cls.registers, cls.registers[1:], strict=False):
            if other.offset < one.end:
                raise ConfigError(cls.__name__, f"{one} overlaps {other}")

    def __new__(cls, *_: Any, **__: Any) -> RegisterDevice:
        """Registers have their values before `__init__` of a subclass runs, which need not call ours."""
        device = super().__new__(cls)
        device._lock = RLock()
        device._values = {register: register.reset for register in cls.registers}
        return device

    _lock: Any
    _values: dict[Register, int]

    def read(self, offset: int, data: memoryview) -> None:
        """Answers the guest."""
        data[:] = b"\xff" * len(data)
        with self._lock:
            for register, start, stop in self._touched(offset, len(data)):
                value = register.guest_read(self).to_bytes(register.size, "little")
                at = register.offset + start - offset
                data[at : at + stop - start] = value[start:stop]

    def write(self, offset: int, data: memoryview) -> None:
        """Takes what the guest writes."""
        with self._lock:
            for register, start, stop in self._touched(offset, len(data)):
                value = bytearray(self._values[register].to_bytes(register.size, "little"))
                at = register.offset + start - offset
                value[start:stop] = data[at : at + stop - start]
                register.guest_write(self, int.from_bytes(value, "little"))

    def _touched(self, offset: int, length: int) -> list[tuple[Register, int, int]]:
        """The registers in a range, with the first and the end of their bytes that lie in it."""
        end = offset + length
        return [
            (register, max(offset - register.offset, 0), min(end - register.offset, register.size))
            for register in self.registers
            if register.offset < end and offset < register.end
        ]


def _is(value: object) -> bool:
    return isinstance(value, Register)
