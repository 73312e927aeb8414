"""kvmpy.irq: what a device's pin does to the interrupt controller."""

from __future__ import annotations

import os

from kvmpy.irq import EdgeLine, LevelLine


class Wires:
    """Stands where a VM stands: keeps what it was told."""

    def __init__(self):
        self.levels = []
        self.irqfds = []

    def irqfd(self, fd, gsi):
        self.irqfds.append((fd, gsi))

    def irq_line(self, gsi, level):
        self.levels.append((gsi, level))


def test_an_edge_line_writes_its_irqfd_once_for_each_rise():
    vm = Wires()
    with EdgeLine(vm, 4) as line:
        fd, gsi = vm.irqfds[0]
        assert gsi == 4
        for level in (True, True, False, True, False, False):
            line.set(level)
        assert os.eventfd_read(fd) == 2


def test_an_edge_line_that_is_closed_is_silent():
    line = EdgeLine(Wires(), 4)
    line.close()
    line.close()
    line.set(True)
    assert line._fd == -1


def test_a_level_line_tells_each_change_once():
    vm = Wires()
    line = LevelLine(vm, 9)
    for level in (False, True, True, False):
        line.set(level)
    assert vm.levels == [(9, True), (9, False)]
