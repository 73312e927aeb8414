"""Interrupt lines: a device says its output's level, the line makes of it what the interrupt controller wants."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from kvmpy.kvm import Vm

    class InterruptLine(Protocol):
        """What a device's interrupt pin is soldered to."""

        def set(self, level: bool) -> None:
            """The pin is high or low from now on; the same level again changes nothing.  Never blocks."""


class EdgeLine:
    """An edge-triggered line (ISA): each rise of the pin writes an irqfd, with which KVM pulses `gsi`.

    Use it as a context manager, or call `close`.
    """

    __slots__ = ("_fd", "_level")

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._level = False
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            vm.irqfd(self._fd, gsi)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> EdgeLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set(self, level: bool) -> None:
        """See `InterruptLine`."""
        if level and not self._level and self._fd >= 0:
            os.eventfd_write(self._fd, 1)
        self._level = level

    def close(self) -> None:
        """Takes the line off the interrupt controller; twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)  # KVM lets go of an irqfd that is closed.
            self._fd = -1


class LevelLine:
    """A level-triggered line: KVM is told each change."""

    __slots__ = ("_gsi", "_level", "_vm")

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi
        self._level = False

    def set(self, level: bool) -> None:
        """See `InterruptLine`."""
        if level != self._level:
            self._level = level
            self._vm.irq_line(self._gsi, level)


class OpenLine:
    """A pin that is soldered to nothing: a machine without interrupt controllers."""

    __slots__ = ()

    def set(self, level: bool) -> None:
        """See `InterruptLine`."""
