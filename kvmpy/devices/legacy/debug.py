"""QEMU's two debugging devices: a port that ends the machine, and a port that prints."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEBUG_EXIT_PORTS = 4

DEBUG_CONSOLE_PORT = 0xE9
DEBUG_CONSOLE_READBACK = 0xE9


def exit_status(value: int) -> int:
    """The process's exit status for a `value` written to `DebugExit`: odd, so never success, as QEMU has it."""
    return (value << 1 | 1) & 0xFF


class DebugExit:
    """QEMU's isa-debug-exit: each write calls `on_exit` with the value, 1, 2 or 4 bytes of it."""

    __slots__ = ("_on_exit",)

    def __init__(self, on_exit: Callable[[int], object]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, data: memoryview) -> None:
        """Reads as zero, as QEMU's."""
        data[:] = bytes(len(data))

    def write(self, offset: int, data: memoryview) -> None:
        """Ends the machine, whichever of the ports is written."""
        if len(data) in (1, 2, 4):
            self._on_exit(int.from_bytes(data, "little"))


class DebugConsole:
    """QEMU's debugcon, one port: bytes written go to `output`; a read gives 0xe9, which tells that it is there."""

    __slots__ = ("output",)

    def __init__(self, output: Callable[[bytes], object]) -> None:
        self.output = output

    def read(self, offset: int, data: memoryview) -> None:
        """Fills the first byte with 0xe9; what lies past the port reads as ones."""
        data[:] = b"\xff" * len(data)
        if offset == 0 and len(data):
            data[0] = DEBUG_CONSOLE_READBACK

    def write(self, offset: int, data: memoryview) -> None:
        """Prints one byte; the rest of a wider write lies past the port."""
        if offset == 0 and len(data):
            self.output(data[:1].tobytes())
