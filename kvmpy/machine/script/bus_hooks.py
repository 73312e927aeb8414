"""Hooks on ranges of ports or guest-physical addresses, over the devices that are there and where there are none."""

from __future__ import annotations

from kvmpy.bus import Mapping
from kvmpy.machine.script.events import Access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmpy.bus import Bus, Device
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.script.events import Event
    from kvmpy.machine.script.hooks import Hook
    from kvmpy.machine.vcpu_thread import VcpuThread

    # Gets the vCPU's thread, the address, the data, and whether it was a write.
    Observer = Callable[[VcpuThread, int, memoryview, bool], None]


class Hooked:
    """A device in whose place hooks are asked first; `device` is None where nobody was."""

    __slots__ = ("_address", "_owner", "device")

    def __init__(self, owner: BusHooks, address: int, device: Device | None) -> None:
        self._owner = owner
        self._address = address
        self.device = device

    def read(self, offset: int, data: memoryview) -> None:
        """The first answer of a hook, or the device's, or all ones."""
        address = self._address + offset
        value = self._owner.read(address, len(data))
        if value is not None:
            data[:] = (value & (1 << 8 * len(data)) - 1).to_bytes(len(data), "little")
        elif self.device is not None:
            self.device.read(offset, data)
        else:
            data[:] = b"\xff" * len(data)
        self._owner.observe(address, data, False)

    def write(self, offset: int, data: memoryview) -> None:
        """Hands on what the hooks let through."""
        self._owner.observe(self._address + offset, data, True)
        value = self._owner.write(self._address + offset, int.from_bytes(data, "little"), len(data))
        if value is not None and self.device is not None:
            self.device.write(offset, memoryview((value & (1 << 8 * len(data)) - 1).to_bytes(len(data), "little")))


class BusHooks:
    """The hooks on one bus of `machine`; `call` calls one, in the thread of the vCPU that it is about.

    The caller keeps `add` and `remove` from meeting each other.
    """

    def __init__(self, machine: Machine, bus: Bus, call: Callable[[VcpuThread, Hook, Event], Any]) -> None:
        self._machine = machine
        self._bus = bus
        self._call = call
        self._hooks: tuple[tuple[range, Hook], ...] = ()
        self._observers: tuple[tuple[range, Observer], ...] = ()
        self.on_add: list[Callable[[range], None]] = []
        """Called before a hook that is added is asked for the first time."""

    def add(self, where: range, hook: Hook) -> None:
        """Asks `hook`, after those that are there already; `ConfigError` for addresses that the bus does not have."""
        before = self._hooks
        self._hooks = (*before, (where, hook))
        for listener in self.on_add:
            listener(where)
        try:
            self._cover(where, hook.what)
        except BaseException:
            self._hooks = before
            self._tidy()
            raise

    def remove(self, hook: Hook) -> None:
        """Asks `hook` no longer."""
        self._hooks = tuple(entry for entry in self._hooks if entry[1] is not hook)
        self._tidy()

    def add_observer(self, where: range, observer: Observer) -> None:
        """Tells `observer` of each access in `where`, of a read with what was read; errors as in `add`."""
        before = self._observers
        self._observers = (*before, (where, observer))
        try:
            self._cover(where, "trace")
        except BaseException:
            self._observers = before
            self._tidy()
            raise

    def remove_observer(self, observer: Observer) -> None:
        """Tells `observer` no more."""
        self._observers = tuple(entry for entry in self._observers if entry[1] != observer)
        self._tidy()

    def observe(self, address: int, data: memoryview, is_write: bool) -> None:
        """An access that is to be told of."""
        end = address + len(data)
        for where, observer in self._observers:
            if where.start < end and address < where.stop:
                observer(self._thread(), address, data, is_write)

    def is_free(self, where: range) -> bool:
        """Whether neither a device nor a hook looks at `where`, so that nobody minds when its writes come late."""
        return not self._at(where.start, len(where)) and all(
            isinstance(mapping.device, Hooked) and mapping.device.device is None for mapping in self._within(where)
        )

    def _cover(self, where: range, name: str) -> None:
        for mapping in self._within(where):
            if not isinstance(mapping.device, Hooked):
                self._replace(mapping, Hooked(self, mapping.start, mapping.device))
        for gap in self._gaps(where):
            self._bus.add(gap.start, len(gap), Hooked(self, gap.start, None), name)

    def read(self, address: int, size: int) -> int | None:
        """What the first hook that has an answer says to a read."""
        hooks = self._at(address, size)
        if not hooks:
            return None
        thread = self._thread()
        event = Access(self._machine, thread, address, size, None, is_write=False)
        for hook in hooks:
            answer = self._call(thread, hook, event)
            if answer is not None:
                return int(answer)
            if event.value is not None:
                return event.value
        return None

    def write(self, address: int, value: int, size: int) -> int | None:
        """What the hooks make of a write; None: nothing."""
        hooks = self._at(address, size)
        if not hooks:
            return value
        thread = self._thread()
        event = Access(self._machine, thread, address, size, value, is_write=True)
        for hook in hooks:
            self._call(thread, hook, event)
            if event.swallowed:
                return None
        return event.value

    def _at(self, address: int, size: int) -> list[Hook]:
        end = address + size
        return [hook for where, hook in self._hooks if where.start < end and address < where.stop]

    def _thread(self) -> VcpuThread:
        for thread in self._machine.vcpus:
            if thread.is_current:
                return thread
        raise AssertionError("only vCPUs access their machine's bus")

    def _within(self, where: range) -> list[Mapping]:
        return [mapping for mapping in self._bus.mappings if mapping.start < where.stop and where.start < mapping.end]

    def _gaps(self, where: range) -> list[range]:
        gaps, start = [], where.start
        for mapping in self._within(where):
            if start < mapping.start:
                gaps.append(range(start, mapping.start))
            start = mapping.end
        if start < where.stop:
            gaps.append(range(start, where.stop))
        return gaps

    def _tidy(self) -> None:
        """Takes out what no hook asks for any more."""
        for mapping in self._bus.mappings:
            device = mapping.device
            if isinstance(device, Hooked) and not self._is_wanted(mapping):
                if device.device is None:
                    self._bus.remove(mapping)
                else:
                    self._replace(mapping, device.device)

    def _is_wanted(self, mapping: Mapping) -> bool:
        places = [where for where, _ in (*self._hooks, *self._observers)]
        return any(where.start < mapping.end and mapping.start < where.stop for where in places)

    def _replace(self, mapping: Mapping, device: Device) -> None:
        # The mapping stays, so that no access goes astray in between; taking out what is not in has the bus tell all
        # who remember the old methods.
        mapping.device = device
        mapping.read, mapping.write = device.read, device.write
        self._bus.remove(_NOBODY)


# In no bus's list: to be taken out without any effect but that the bus tells its listeners.
_NOBODY = Mapping(0, 0, Hooked(BusHooks.__new__(BusHooks), 0, None), "nobody")
