"""Programs for /init in tests that boot Linux, made without compiler or busybox.

Each function returns a static ELF program; `initramfs` puts it into a cpio archive for the guest.  The kernel opens
/dev/console as the program's descriptors 0 to 2, and the terminal there turns each `\\n` into `\\r\\n`:
`on_console` gives what the host sees.
"""

from __future__ import annotations

from typing import Literal

from kvmpy.images import initramfs as images
from kvmpy.images import static_init
from kvmpy.images.static_init import Program

End = Literal["restart", "power off", "halt", "exit", "crash", "wait"]

LINE_SIZE = 64
INPUT_SIZE = 4096

_REBOOT_COMMANDS = {
    "restart": static_init.LINUX_REBOOT_CMD_RESTART,
    "power off": static_init.LINUX_REBOOT_CMD_POWER_OFF,
    "halt": static_init.LINUX_REBOOT_CMD_HALT,
}


def init_printing(message: str, *, end: End = "restart") -> bytes:
    """Prints `message` and ends the machine."""
    program = Program()
    program.write(message.encode())
    return _finish(program, end)


def init_pattern(size: int, *, message: str = "", end: End = "restart") -> bytes:
    """Prints `pattern(size)`, then `message`, and ends the machine."""
    program = Program()
    program.write(pattern(size))
    program.write(message.encode())
    return _finish(program, end)


def init_echo(prompt: str = "ready\n", reply: str = "got: ", *, lines: int = 1, end: End = "restart") -> bytes:
    """Prints `prompt`, then `reply` and what was typed for each of `lines` lines, and ends the machine.

    The terminal is as the kernel made it: it echoes what is typed as well, and gives it line by line.
    """
    program = Program()
    buffer = program.data(bytes(INPUT_SIZE))
    program.write(prompt.encode())
    for number in range(lines):
        program.call(static_init.READ, 0, buffer, INPUT_SIZE)
        program.move("r12", "rax")
        program.test("rax")
        program.jump(f"end {number}", "not positive")
        program.write(reply.encode())
        program.call(static_init.WRITE, 1, buffer, "r12")
        program.label(f"end {number}")
    return _finish(program, end)


def init_panic(message: str = "", *, instruction: bool = False) -> bytes:
    """Prints `message` and ends as no init may, so that the kernel panics: it exits with status 1, or with
    `instruction` runs into an invalid one.
    """
    return init_printing(message, end="crash" if instruction else "exit")


def init_waiting(message: str = "ready\n") -> bytes:
    """Prints `message` and sleeps for ever: for tests that stop the machine from outside."""
    return init_printing(message, end="wait")


def initramfs(init: bytes) -> bytes:
    """A cpio archive with `init` as /init and the console it writes to."""
    return images.program_initramfs(init)


def pattern(size: int) -> bytes:
    """`size` bytes of text in lines of 64 bytes, each with its number, so that a loss or a repeat shows where."""
    filler = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    count = -(-size // LINE_SIZE)
    text = "".join(f"{number:08d} {filler:<{LINE_SIZE - 10}}\n" for number in range(count))
    return text.encode()[:size]


def on_console(text: bytes | str) -> bytes:
    """What `text` from a program looks like on a console in its usual settings: `\\r\\n` for each `\\n`."""
    data = text.encode() if isinstance(text, str) else text
    return data.replace(b"\n", b"\r\n")


def _finish(program: Program, end: End) -> bytes:
    if end == "crash":
        program.invalid()
    elif end == "wait":
        program.label("wait")
        program.call(static_init.PAUSE)
        program.jump("wait")
    else:
        if end in _REBOOT_COMMANDS:
            program.reboot(_REBOOT_COMMANDS[end])
        program.call(static_init.EXIT, 1)
    return program.elf()
