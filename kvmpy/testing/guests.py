"""Ready guests of a few instructions, each at most a page.

All of them begin in real mode (16 bits) at their first byte, loaded at `LOAD_ADDRESS` with the bases of CS and DS 0,
and end in `hlt` with interrupts off.  They need no stack.  A value that does not fit raises `AsmError`.
"""

from __future__ import annotations

from kvmpy.testing.asm import Code, assemble
from kvmpy.units import KIB, PAGE_SIZE

LOAD_ADDRESS = 0x1000

RESET_VECTOR = 0xFFF0
"""Where a CPU begins after reset: this far into the last 64 KiB below 4 GiB."""

_HALT = """
halt:   cli
        hlt
        jmp     halt
"""


def hello(port: int = 0xE9) -> Code:
    """Writes `hello` and a line feed to `port`, a byte each time."""
    return _guest(
        """
        cld
        mov     dx, PORT
        mov     si, text
        mov     cx, length
next:   lodsb
        out     dx, al
        loop    next
        jmp     halt
text:   db      "hello", 10
length  equ     $ - text
        """,
        PORT=port,
    )


def debug_exit(value: int, port: int = 0xF4) -> Code:
    """Writes the byte `value` to `port`, where a debug exit device ends the machine."""
    return _guest("mov dx, PORT\n mov al, VALUE\n out dx, al", PORT=port, VALUE=value)


def count_loop(n: int) -> Code:
    """Runs `dec; jnz` `n` times: 0 to 2^32-1 rounds without an exit."""
    return _guest(
        """
        mov     ecx, N
        jecxz   halt
next:   dec     ecx
        jnz     next
        """,
        N=n,
    )


def port_writes(port: int, n: int) -> Code:
    """Writes a byte to `port` `n` times, 0 to 2^32-1: as many exits."""
    return _guest(
        """
        mov     dx, PORT
        mov     ecx, N
        jecxz   halt
next:   out     dx, al
        dec     ecx
        jnz     next
        """,
        PORT=port,
        N=n,
    )


def boot_page(port: int = 0xF4, value: int = 0x2A) -> Code:
    """A whole page that writes the byte `value` to `port` and halts; it runs at any address.

    Its start is the code, and 16 bytes before its end is a jump to the start.  So it also is the last page of a
    firmware image: see `firmware`.
    """
    return assemble(
        f"""
start:  mov     dx, PORT
        mov     al, VALUE
        out     dx, al
        {_HALT}
        times   SIZE - 16 - ($ - $$) db 0
        jmp     start
        times   SIZE - ($ - $$) db 0
        """,
        bits=16,
        PORT=port,
        VALUE=value,
        SIZE=PAGE_SIZE,
    )


def firmware(port: int = 0xF4, value: int = 0x2A) -> bytes:
    """64 KiB to end at 4 GiB: `boot_page` behind padding, so that its jump lies on the reset vector."""
    return boot_page(port, value).rjust(64 * KIB, b"\xff")


def _guest(source: str, **constants: int) -> Code:
    return assemble(source + _HALT, bits=16, origin=LOAD_ADDRESS, **constants)
