"""QEMU's firmware configuration device: items and named files that a PC's firmware reads (QEMU, specs/fw_cfg).

Three ports: the selector takes an item's key, each read of the data port gives its next byte, and the DMA register
takes the guest-physical address of a request that is carried out at once.  Numbers in items are little-endian; those
of the DMA interface and of the file directory are big-endian.
"""

from __future__ import annotations

import struct
from threading import Lock

from kvmpy.devices.state import State, hexadecimal, integer
from kvmpy.errors import ConfigError, GuestMemoryError, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import ClassVar

    from kvmpy.devices.state import Fields
    from kvmpy.memory import GuestMemory

FW_CFG_PORT = 0x510
FW_CFG_PORTS = 12

# Offsets of the registers.
SELECTOR = 0
DATA = 1
DMA_ADDRESS_HIGH = 4
DMA_ADDRESS_LOW = 8
DMA_END = 12

FW_CFG_SIGNATURE = 0x00
FW_CFG_ID = 0x01
FW_CFG_UUID = 0x02
FW_CFG_RAM_SIZE = 0x03
FW_CFG_NOGRAPHIC = 0x04
FW_CFG_NB_CPUS = 0x05
FW_CFG_KERNEL_SIZE = 0x08
FW_CFG_INITRD_SIZE = 0x0B
FW_CFG_BOOT_MENU = 0x0E
FW_CFG_MAX_CPUS = 0x0F
FW_CFG_KERNEL_DATA = 0x11
FW_CFG_INITRD_DATA = 0x12
FW_CFG_CMDLINE_SIZE = 0x14
FW_CFG_CMDLINE_DATA = 0x15
FW_CFG_SETUP_SIZE = 0x17
FW_CFG_SETUP_DATA = 0x18
FW_CFG_FILE_DIR = 0x19
FW_CFG_FILE_FIRST = 0x20
FW_CFG_FILE_LAST = 0x3FFF

FW_CFG_VERSION = 0x01
FW_CFG_VERSION_DMA = 0x02

FW_CFG_DMA_CTL_ERROR = 0x01
FW_CFG_DMA_CTL_READ = 0x02
FW_CFG_DMA_CTL_SKIP = 0x04
FW_CFG_DMA_CTL_SELECT = 0x08
FW_CFG_DMA_CTL_WRITE = 0x10

DMA_SIGNATURE = b"QEMU CFG"  # what the DMA register reads as

FILE_NAME_SIZE = 56  # with the zero at its end

_DMA_ACCESS = struct.Struct(">IIQ")  # control, length, address
_FILE = struct.Struct(f">IHH{FILE_NAME_SIZE}s")  # size, key, reserved, name
_NO_ITEM = -1


class FwCfgState(State):
    """The selected `key` (-1: none yet), the `offset` in its item, the half of a DMA address that was written, and
    what is in the files that the guest may write: name → hexadecimal digits.
    """

    __slots__ = ("address_high", "files", "key", "offset")

    FIELDS: ClassVar[Fields] = {
        "key": integer(_NO_ITEM, 0xFFFF),
        "offset": integer(0, (1 << 32) - 1),
        "address_high": integer(0, (1 << 32) - 1),
        "files": lambda value: (
            isinstance(value, dict) and all(isinstance(k, str) and hexadecimal(v) for k, v in value.items())
        ),
    }

    def __init__(self, *, key: int, offset: int, address_high: int, files: Mapping[str, str]) -> None:
        self.key = key
        self.offset = offset
        self.address_high = address_high
        self.files = dict(files)


class _Item:
    """What a key leads to; `on_written` makes it writable and hears of it."""

    __slots__ = ("content", "on_written")

    def __init__(self, content: bytes | bytearray, on_written: Callable[[bytes], object] | None = None) -> None:
        self.content = content
        self.on_written = on_written


class FwCfg:
    """The device with its items; `memory` is where DMA goes.

    Fill it before the machine starts: by key with `add`, by name with `add_file`.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._lock = Lock()
        self._items: dict[int, _Item] = {}
        self._files: dict[str, _Item] = {}
        self._key = _NO_ITEM
        self._offset = 0
        self._address_high = 0
        self.add(FW_CFG_SIGNATURE, b"QEMU")
        self.add_int(FW_CFG_ID, FW_CFG_VERSION | FW_CFG_VERSION_DMA, 4)
        self._build_directory()

    # Filling it.

    def add(self, key: int, content: bytes) -> None:
        """Puts an item at `key`, in the place of what was there."""
        self._items[key] = _Item(content)

    def add_int(self, key: int, value: int, size: int) -> None:
        """Puts a number of `size` bytes at `key`."""
        self.add(key, value.to_bytes(size, "little"))

    def add_file(self, name: str, content: bytes, *, on_written: Callable[[bytes], object] | None = None) -> None:
        """Adds the file `name`, as in `etc/e820`, or replaces it.

        With `on_written` the guest may write it, by DMA, and the function then gets all of it.  A name that the
        directory cannot hold is a `ConfigError`.
        """
        encoded = name.encode("ascii", "replace")
        if not 0 < len(encoded) < FILE_NAME_SIZE or not name.isascii() or not name.isprintable():
            raise ConfigError("fw_cfg", f"{name!r} is not a name of 1 to {FILE_NAME_SIZE - 1} ASCII characters")
        if len(self._files) > FW_CFG_FILE_LAST - FW_CFG_FILE_FIRST:
            raise ConfigError("fw_cfg", "there are more files than keys")
        self._files[name] = _Item(content if on_written is None else bytearray(content), on_written)
        self._build_directory()

    def add_linux(self, setup: bytes, kernel: bytes, *, initrd: bytes = b"", cmdline: bytes = b"\0") -> None:
        """Adds a kernel for firmware that boots it by itself, as qboot does.

        `setup` and `kernel` are a bzImage's two halves: real-mode code with the setup header, and all behind it;
        `cmdline` has its NUL.
        """
        for size_key, data_key, content in (
            (FW_CFG_SETUP_SIZE, FW_CFG_SETUP_DATA, setup),
            (FW_CFG_KERNEL_SIZE, FW_CFG_KERNEL_DATA, kernel),
            (FW_CFG_INITRD_SIZE, FW_CFG_INITRD_DATA, initrd),
            (FW_CFG_CMDLINE_SIZE, FW_CFG_CMDLINE_DATA, cmdline),
        ):
            self.add_int(size_key, len(content), 4)
            self.add(data_key, content)

    def files(self) -> dict[str, bytes]:
        """The files by name, with what is in them now."""
        with self._lock:
            return {name: bytes(item.content) for name, item in self._files.items()}

    def _build_directory(self) -> None:
        """Keys go by rising name, and the directory with them."""
        directory = [len(self._files).to_bytes(4, "big")]
        for key, name in enumerate(sorted(self._files), FW_CFG_FILE_FIRST):
            item = self._items[key] = self._files[name]
            directory.append(_FILE.pack(len(item.content), key, 0, name.encode()))
        self.add(FW_CFG_FILE_DIR, b"".join(directory))

    # The ports.

    def read(self, offset: int, data: memoryview) -> None:
        """The data port gives the next byte, the DMA register its signature; all else reads as ones."""
        data[:] = b"\xff" * len(data)
        if offset >= DMA_ADDRESS_HIGH and offset + len(data) <= DMA_END:
            start = offset - DMA_ADDRESS_HIGH
            data[:] = DMA_SIGNATURE[start : start + len(data)]
        elif offset == DATA and len(data) == 1:
            with self._lock:
                data[:] = self._take(1) or b"\0"

    def write(self, offset: int, data: memoryview) -> None:
        """A word to the selector selects; the low half of the DMA register starts a request."""
        value = int.from_bytes(data, "big")
        if offset == SELECTOR and len(data) == 2:
            with self._lock:
                self._select(int.from_bytes(data, "little"))
        elif offset == DMA_ADDRESS_HIGH and len(data) == 4:
            with self._lock:
                self._address_high = value
        elif offset == DMA_ADDRESS_LOW and len(data) == 4:
            self._start_dma(value)

    def save(self) -> FwCfgState:
        """Where the guest is reading, and what it has written."""
        with self._lock:
            files = {name: item.content.hex() for name, item in self._files.items() if item.on_written is not None}
            return FwCfgState(key=self._key, offset=self._offset, address_high=self._address_high, files=files)

    def restore(self, state: FwCfgState) -> None:
        """Takes over `state`; an `ImageError` if its files are not this device's.  Items do not change."""
        with self._lock:
            writable = {name: item for name, item in self._files.items() if item.on_written is not None}
            sizes = {name: 2 * len(item.content) for name, item in writable.items()}
            if sizes != {name: len(digits) for name, digits in state.files.items()}:
                raise ImageError("the saved FwCfgState has other files than this machine")
            for name, item in writable.items():
                item.content = bytearray.fromhex(state.files[name])
            self._key = state.key
            self._offset = state.offset
            self._address_high = state.address_high

    # Inside, with the lock held.

    def _select(self, key: int) -> None:
        self._key = key
        self._offset = 0

    def _take(self, length: int) -> bytes:
        """The next bytes of the selected item, at most `length`; past its end there are none."""
        item = self._items.get(self._key)
        if item is None:
            return b""
        taken = bytes(item.content[self._offset : self._offset + length])
        self._offset += len(taken)
        return taken

    def _start_dma(self, address_low: int) -> None:
        written: tuple[Callable[[bytes], object], bytes] | None = None
        with self._lock:
            address = self._address_high << 32 | address_low
            self._address_high = 0
            error = 0
            try:
                control, length, buffer = _DMA_ACCESS.unpack(self._memory.read(address, _DMA_ACCESS.size))
                if control & FW_CFG_DMA_CTL_SELECT:
                    self._select(control >> 16)
                if control & FW_CFG_DMA_CTL_READ:
                    self._dma_read(buffer, length)
                elif control & FW_CFG_DMA_CTL_WRITE:
                    written = self._dma_write(buffer, length)
                elif control & FW_CFG_DMA_CTL_SKIP:
                    self._take(length)
            except GuestMemoryError:
                error = FW_CFG_DMA_CTL_ERROR
            try:
                # The guest waits for the other bits to go.
                self._memory.write(address, error.to_bytes(4, "big"))
            except GuestMemoryError:
                pass  # A request that is not in RAM has nowhere to be answered.
        if written is not None:
            on_written, content = written
            on_written(content)

    def _dma_read(self, buffer: int, length: int) -> None:
        """Copies the item on, and zeros for what lies past its end."""
        self._memory.region_of(buffer, length)  # Looked at first: a request is done wholly or not at all.
        taken = self._take(length)
        self._memory.write(buffer, taken)
        self._memory.fill(buffer + len(taken), length - len(taken))

    def _dma_write(self, buffer: int, length: int) -> tuple[Callable[[bytes], object], bytes]:
        """Writes into the item; whom to tell what is in it now.  What does not fit is refused."""
        item = self._items.get(self._key)
        if item is None or item.on_written is None or length > len(item.content) - self._offset:
            raise GuestMemoryError(buffer, length)
        assert isinstance(item.content, bytearray)
        item.content[self._offset : self._offset + length] = self._memory.read(buffer, length)
        self._offset += length
        return item.on_written, bytes(item.content)
