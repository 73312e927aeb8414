"""Machine code run by this very processor, in this process: the peer of whoever says what an instruction does."""

from __future__ import annotations

import ctypes
import mmap
import platform

IS_X86_64 = platform.machine() == "x86_64"


class Native:
    """Calls machine code as a function of one argument, RDI: the address of `block`, which is page-aligned.

    The code ends in `ret` and keeps what the System V calling convention has a function keep.  One thread at a time.
    """

    def __init__(self, size: int = mmap.PAGESIZE) -> None:
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.block = mmap.mmap(-1, size)
        self._argument = ctypes.addressof(ctypes.c_char.from_buffer(self.block))
        entry = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)

    def __call__(self, code: bytes) -> None:
        """Runs `code`, at most a page."""
        self._code[: len(code)] = code
        self._function(self._argument)
