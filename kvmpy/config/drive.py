"""What disk is wanted: `DriveConfig`, and the text of `--drive` that it is read from.

    disk.img                        read and written, by way of the host's page cache
    disk.img,ro                     read only; several machines may share it
    /dev/sdb,cache=none             around the host's page cache
    a,,b.img,serial=backup          the file `a,b.img`, with a name that the guest sees
    disk.img,engine=threads         without io_uring
    disk.img,queues=2               one queue of requests for each of two vCPUs

The path comes first; a comma in it is written twice.
"""

from __future__ import annotations

from kvmpy.errors import ConfigError

WRITEBACK = "writeback"
NONE = "none"
CACHES = (WRITEBACK, NONE)

AUTO = "auto"
ENGINES = (AUTO, "io_uring", "threads")

MAX_QUEUES = 16
MAX_SERIAL_LENGTH = 20
MAX_TEXT_LENGTH = 8192


class DriveConfig:
    """A disk, as asked for: the raw image or block device at `path`.

    `read_only` keeps the guest from changing it; `cache`, one of `CACHES`, says whether the host's page cache lies
    between; `engine`, one of `ENGINES`, is what reads and writes it on the host; `queues` is how many queues of
    requests the guest has; `serial` is what it reads as the disk's serial number, up to 20 characters of ASCII.

    Raises a `ConfigError` at `drive` for what makes no sense.  The file is not looked at.
    """

    __slots__ = ("cache", "engine", "path", "queues", "read_only", "serial")

    def __init__(
        self,
        path: str,
        *,
        read_only: bool = False,
        cache: str = WRITEBACK,
        engine: str = AUTO,
        queues: int = 1,
        serial: str = "",
    ) -> None:
        if not path or "\0" in path:
            raise ConfigError("drive", f"{path!r:.100} is not a file name; write as in disk.img,ro")
        if cache not in CACHES:
            raise ConfigError("drive", f"the cache {cache!r:.100} is none of {', '.join(CACHES)}")
        if engine not in ENGINES:
            raise ConfigError("drive", f"the engine {engine!r:.100} is none of {', '.join(ENGINES)}")
        if not 0 < queues <= MAX_QUEUES:
            raise ConfigError("drive", f"{queues} queues are not 1 to {MAX_QUEUES}")
        if len(serial) > MAX_SERIAL_LENGTH or not serial.isascii() or (serial and not serial.isprintable()):
            raise ConfigError("drive", f"{serial!r:.100} is no serial number: up to {MAX_SERIAL_LENGTH} of ASCII")
        self.path = path
        self.read_only = read_only
        self.cache = cache
        self.engine = engine
        self.queues = queues
        self.serial = serial

    def __repr__(self) -> str:
        return f"DriveConfig({', '.join(f'{key}={getattr(self, key)!r:.200}' for key in self.__slots__)})"


def parse_drive(text: str) -> DriveConfig:
    """The disk that `text` asks for (see the module); else a `ConfigError` at `drive`."""
    if len(text) > MAX_TEXT_LENGTH:
        raise ConfigError("drive", f"{len(text)} characters are too many")
    # A file's name has no NUL, so it can stand for a comma meanwhile.
    if "\0" in text:
        raise ConfigError("drive", "a NUL is in no file name")
    path, *words = (word.replace("\0", ",") for word in text.replace(",,", "\0").split(","))
    read_only = False
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word == "ro":
            read_only = True
        elif not equals or key not in ("cache", "engine", "queues", "serial"):
            raise ConfigError("drive", f"{word!r:.100} is none of ro, cache=, engine=, queues=, serial=")
        elif key in given:
            raise ConfigError("drive", f"{key} is given twice")
        else:
            given[key] = value
    queues = given.get("queues", "1")
    if not (queues.isascii() and queues.isdigit() and len(queues) < 4):
        raise ConfigError("drive", f"{queues!r:.100} is not a number of queues")
    return DriveConfig(
        path,
        read_only=read_only,
        cache=given.get("cache", WRITEBACK),
        engine=given.get("engine", AUTO),
        queues=int(queues),
        serial=given.get("serial", ""),
    )
