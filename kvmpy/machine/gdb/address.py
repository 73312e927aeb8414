"""Where a stub listens: a unix socket's path, or a port on loopback."""

from __future__ import annotations

import ipaddress
import os

from kvmpy.errors import ConfigError

LOCALHOST = "127.0.0.1"
MAX_PORT = 0xFFFF

# sun_path of struct sockaddr_un, without its NUL.
MAX_PATH = 107

_FORMS = "write a path, unix:PATH, :PORT or tcp:127.0.0.1:PORT"


class GdbAddress:
    """Either `path`, a unix socket's, or `host` and `port`; the others are None.  Port 0 stands for any free one."""

    __slots__ = ("host", "path", "port")

    def __init__(self, *, path: str | None = None, host: str | None = None, port: int | None = None) -> None:
        self.path = path
        self.host = host
        self.port = port

    def __str__(self) -> str:
        """As gdb's `target remote` takes it."""
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in (self.host or "") else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"GdbAddress({self})"


def parse_address(text: str, *, name: str = "gdb") -> GdbAddress:
    """The address in `/run/vm.gdb`, `unix:/run/vm.gdb`, `:1234`, `tcp:127.0.0.1:1234` or `tcp:[::1]:1234`.

    Whoever reaches the stub owns the guest, so a host that is not loopback is a `ConfigError` at `name`, as is all
    else that is no address.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind == "unix":
        return _unix(rest, text, name)
    if colon and kind == "tcp":
        return _tcp(rest, text, name)
    _, colon, port = text.rpartition(":")
    if colon and "/" not in text and (_is_number(port) or text.startswith(":")):
        return _tcp(text, text, name)
    if _is_number(text):
        raise ConfigError(name, f"{text[:20]!r} is no address; for a port write :{text[:20]}")
    return _unix(text, text, name)


def _unix(path: str, text: str, name: str) -> GdbAddress:
    try:
        length = len(os.fsencode(path))
    except UnicodeEncodeError:
        length = 0
    if not length or "\0" in path:
        raise ConfigError(name, f"{text[:200]!r} names no socket; {_FORMS}")
    if length > MAX_PATH:
        raise ConfigError(name, f"a socket's path has at most {MAX_PATH} bytes, and this one {length}")
    return GdbAddress(path=path)


def _tcp(rest: str, text: str, name: str) -> GdbAddress:
    host, colon, port = rest.rpartition(":")
    if not colon or not _is_number(port) or int(port) > MAX_PORT:
        raise ConfigError(name, f"{text[:200]!r} has no port from 0 to {MAX_PORT}; {_FORMS}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if host in ("", "localhost"):
        host = LOCALHOST
    try:
        is_loopback = "%" not in host and ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ConfigError(name, f"{text[:200]!r} has no IP address of this host; {_FORMS}") from None
    if not is_loopback:
        raise ConfigError(name, f"{host} is not loopback, and who reaches the stub owns the guest; use {LOCALHOST}")
    return GdbAddress(host=host, port=int(port))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
