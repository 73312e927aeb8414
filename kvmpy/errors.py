"""Everything that kvmpy raises on purpose, as one tree under `KvmpyError`.

A message is one sentence that a person can act on.  The command line prints it and leaves with the class's
`status`; a library user catches the class.
"""

from __future__ import annotations

import os


class KvmpyError(Exception):
    """Root of all errors that kvmpy raises on purpose.

    `status` is the exit status of the command line: 1, the host or kvmpy failed.
    """

    status = 1


class ConfigError(KvmpyError):
    """What was asked for makes no sense; change the option that `path` names.

    `path` is the way into the configuration, as in `memory` or `drives[1].path`.
    """

    status = 2

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class ImageError(KvmpyError):
    """A kernel, initrd or other file is not what it should be; give another file."""

    status = 1


class GuestMemoryError(KvmpyError):
    """An access that does not lie wholly inside guest RAM.

    Guest addresses are untrusted: devices catch this and carry on, loaders let it through.
    """

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"guest memory {address:#x}, {length:#x} bytes long, is not RAM of this machine")
        self.address = address
        self.length = length


class StateError(KvmpyError):
    """The machine is not in a state in which this can be done; look at its `state` first."""


class HostError(KvmpyError, OSError):
    """The host's kernel refused a call that kvmpy needs; `errno` says why.

    `call` is the system call or ioctl by its name in the kernel's headers.
    """

    def __init__(self, call: str, errno: int, advice: str = "") -> None:
        text = f"{call}: {os.strerror(errno)}" + (f"; {advice}" if advice else "")
        super().__init__(text)
        self.call = call
        self.errno = errno
        self.advice = advice

    def __str__(self) -> str:
        return str(self.args[0])


class KvmError(HostError):
    """An ioctl on `/dev/kvm`, or on an fd made from it, failed; `call` names it."""
