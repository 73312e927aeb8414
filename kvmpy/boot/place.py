"""What every loader does: put an image, its modules and its command line where nothing of ours lies."""

from __future__ import annotations

from kvmpy.errors import ConfigError, ImageError
from kvmpy.memory import HOLE_START
from kvmpy.units import KIB, MIB, PAGE_SIZE, align_down, align_up, format_size
from kvmpy.x86 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy.boot.elf import Elf
    from kvmpy.memory import GuestMemory

# Where boot information other than Linux' lies, all of it: structures, lists and texts.
BOOT_INFO = layout.COMMAND_LINE
BOOT_INFO_MAX = layout.COMMAND_LINE_MAX

# What this package or the machine writes below 1 MiB: (start, end, what).  ACPI's tables and then the MP table lie in
# the BIOS area; linkers like to put a file's headers right before 1 MiB, and there is room for them.
OURS = (
    (0x400, 0x500, "the BIOS data area"),
    (layout.GDT, layout.BOOT_STACK, "the GDT"),
    (BOOT_INFO, BOOT_INFO + BOOT_INFO_MAX, "the boot information"),
    (layout.EBDA, layout.EBDA_END, "the extended BIOS data area"),
    (layout.BIOS, layout.MP_TABLE + 8 * KIB, "the BIOS area"),
)

# Modules of a guest; each takes an entry of at most 32 bytes in a list.
MODULES_MAX = 256


class Module:
    """A file for the guest: its bytes, and `text`, its name and arguments where the protocol has a place for them."""

    __slots__ = ("data", "text")

    def __init__(self, data: memoryview, text: str = "") -> None:
        self.data = data
        self.text = text


class BootInfo:
    """Fills the place of the boot information from its start on."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.end = BOOT_INFO

    def put(self, data: bytes) -> int:
        """Writes `data`, 8-byte aligned; its address.  `ConfigError` when there is no room."""
        address = align_up(self.end, 8)
        if address + len(data) > BOOT_INFO + BOOT_INFO_MAX:
            raise ConfigError("append", f"command line and module texts together are over {format_size(BOOT_INFO_MAX)}")
        self._memory.write(address, data)
        self.end = address + len(data)
        return address


def encode_cmdline(cmdline: str, limit: int) -> bytes:
    """The NUL-terminated bytes of a command line that may have `limit` of them before the NUL."""
    try:
        line = cmdline.encode("utf-8", "surrogateescape")  # as Python decodes what came on our own command line
    except UnicodeEncodeError as error:
        raise ConfigError("append", "the kernel command line holds characters that are no text") from error
    limit = min(limit, layout.COMMAND_LINE_MAX - 1)
    if b"\0" in line:
        raise ConfigError("append", "the kernel command line holds a NUL character")
    if len(line) > limit:
        raise ConfigError("append", f"the kernel command line has {len(line)} bytes; this kernel takes {limit}")
    return line + b"\0"


def check_free(memory: GuestMemory, start: int, end: int, what: str = "the kernel") -> None:
    """Whether `what` may lie there: in RAM below 3 GiB, and on nothing of ours.

    `ConfigError` where more memory would help, else `ImageError`.
    """
    if end > HOLE_START:
        raise ImageError(f"{what} reaches up to {end:#x}; RAM below 4 GiB ends at {HOLE_START:#x}")
    for low, high, name in OURS:
        if start < high and low < end:
            raise ImageError(f"{what} takes {start:#x} to {end:#x}, and {name} lies at {low:#x} to {high:#x}")
    check_fits(memory, end)


def check_fits(memory: GuestMemory, end: int) -> None:
    """`ConfigError` where the machine's RAM does not reach up to `end`."""
    if end > low_ram_end(memory):
        needed = format_size(align_up(end, MIB))
        raise ConfigError("memory", f"the kernel needs at least {needed}; the machine has {format_size(memory.size)}")


def load_segments(memory: GuestMemory, file: Elf) -> None:
    """Copies what an ELF file loads to its physical addresses; they were checked.  `memory` is fresh, so zeroed."""
    for segment in file.loads:
        memory.write(segment.paddr, file.data[segment.offset : segment.offset + segment.filesz])


def low_ram_end(memory: GuestMemory) -> int:
    """Where the RAM that begins at 0 ends."""
    return memory.regions[0].end


def place_high(memory: GuestMemory, data: memoryview, floor: int, ceiling: int) -> int:
    """Copies `data` as high as it goes between `floor` and `ceiling`, on a page boundary; its address."""
    address = align_down(ceiling - len(data), PAGE_SIZE)
    if address < floor:
        cure = "give the machine more memory" if ceiling == low_ram_end(memory) else "this kernel takes none above that"
        raise ConfigError("initrd", f"{len(data)} bytes do not fit between {floor:#x} and {ceiling:#x}; {cure}")
    memory.write(address, data)
    return address


def place_after(memory: GuestMemory, modules: Iterable[Module], floor: int) -> list[int]:
    """Copies `modules` one after the other from `floor` on, each to a page boundary; their addresses."""
    addresses = []
    end = low_ram_end(memory)
    for module in modules:
        address = align_up(floor, PAGE_SIZE)
        floor = address + len(module.data)
        if floor > end:
            raise ConfigError(
                "initrd", f"a module ends at {floor:#x} and RAM at {end:#x}; give the machine more memory"
            )
        memory.write(address, module.data)
        addresses.append(address)
    return addresses
