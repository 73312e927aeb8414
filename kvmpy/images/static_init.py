"""A static x86-64 ELF program made here, without compiler or assembler: system calls, loops and branches.

It is what /init needs and little more.  Where each instruction of the kernel is emulated, one small program starts
in a tenth of the time of a shell with its forks.  Names and numbers are those of the kernel's
arch/x86/entry/syscalls/syscall_64.tbl; encodings are those of the Intel manual, volume 2.
"""

from __future__ import annotations

import struct

from kvmpy.errors import ImageError

READ = 0
WRITE = 1
OPEN = 2
CLOSE = 3
RT_SIGACTION = 13
IOCTL = 16
DUP2 = 33
PAUSE = 34
FORK = 57
EXECVE = 59
EXIT = 60
WAIT4 = 61
KILL = 62
MKDIR = 83
MKNOD = 133
SETSID = 112
MOUNT = 165
SYNC = 162
REBOOT = 169
FINIT_MODULE = 313

SIGUSR1 = 10
SIGUSR2 = 12
SIGTERM = 15
SA_RESTORER = 0x04000000  # x86-64 takes no handler without one.

LINUX_REBOOT_MAGIC1 = 0xFEE1DEAD
LINUX_REBOOT_MAGIC2 = 672274793
LINUX_REBOOT_CMD_RESTART = 0x01234567
LINUX_REBOOT_CMD_HALT = 0xCDEF0123
LINUX_REBOOT_CMD_POWER_OFF = 0x4321FEDC

CODE_ADDRESS = 0x400000
DATA_ADDRESS = 0x800000
_CODE_LIMIT = DATA_ADDRESS - CODE_ADDRESS
_ELF_HEADERS = 64 + 2 * 56

_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_CONDITIONS = {"zero": 0x84, "nonzero": 0x85, "negative": 0x88, "positive": 0x8F, "not positive": 0x8E}


class Program:
    """Code and data of a program that grows from its first instruction to its last.

    Values live in registers by name; `call` keeps all but rax, rcx, r11 and those of the arguments.
    """

    def __init__(self) -> None:
        self._code = bytearray()
        self._data = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self._addresses: list[tuple[int, str]] = []

    def data(self, content: bytes) -> int:
        """Puts `content` into the data segment, aligned to 8 bytes, and returns its address."""
        self._data += bytes(-len(self._data) % 8)
        address = DATA_ADDRESS + len(self._data)
        self._data += content
        return address

    def text(self, text: str) -> int:
        """The address of `text` as a C string."""
        return self.data(text.encode() + b"\0")

    def pointers(self, *addresses: int) -> int:
        """The address of an array of pointers that ends with NULL, as argv is."""
        return self.data(struct.pack(f"<{len(addresses) + 1}Q", *addresses, 0))

    def call(self, number: int, *arguments: int | str) -> None:
        """Makes a system call; its result is in rax.  An argument is a number or the name of a register."""
        for register, value in zip(_ARGUMENTS, arguments, strict=False):
            self.move(register, value)
        self.move("rax", number)
        self._code += b"\x0f\x05"

    def move(self, register: str, value: int | str) -> None:
        """register = value, a number or another register."""
        target = _REGISTERS.index(register)
        if isinstance(value, str):
            if value != register:
                self._two(0x89, target, _REGISTERS.index(value))
        elif 0 <= value <= 0xFFFFFFFF:
            self._code += (b"\x41" if target > 7 else b"") + bytes([0xB8 | target & 7]) + struct.pack("<I", value)
        else:
            self._code += bytes([0x48 | target >> 3, 0xB8 | target & 7]) + struct.pack("<Q", value & (1 << 64) - 1)

    def add(self, register: str, other: str) -> None:
        """register += other."""
        self._two(0x01, _REGISTERS.index(register), _REGISTERS.index(other))

    def subtract(self, register: str, other: str) -> None:
        """register -= other; a `jump` after it goes by the result."""
        self._two(0x29, _REGISTERS.index(register), _REGISTERS.index(other))

    def test(self, register: str) -> None:
        """Sets what `jump` goes by from the signed 64-bit value of `register`."""
        number = _REGISTERS.index(register)
        self._two(0x85, number, number)

    def load_environment(self, register: str) -> None:
        """register = the envp that the kernel passed; only as the first instruction of the program."""
        number = _REGISTERS.index(register)
        self._code += b"\x48\x8b\x04\x24"  # mov rax, [rsp]: argc
        # lea register, [rsp + rax * 8 + 16]
        self._code += bytes([0x48 | (number >> 3) << 2, 0x8D, 0x44 | (number & 7) << 3, 0xC4, 16])

    def load32(self, register: str, address: int) -> None:
        """register = the 32-bit number at `address`, zero extended."""
        number = _REGISTERS.index(register)
        prefix = b"\x44" if number > 7 else b""
        self._code += prefix + bytes([0x8B, 0x04 | (number & 7) << 3, 0x25]) + struct.pack("<I", address)

    def label(self, name: str) -> None:
        """Names this place for `jump`."""
        self._labels[name] = len(self._code)

    def jump(self, label: str, condition: str = "") -> None:
        """Goes to `label`, always or if the last result was zero, nonzero, negative, positive or not positive."""
        self._code += bytes([0x0F, _CONDITIONS[condition]]) if condition else b"\xe9"
        self._code += bytes(4)
        self._jumps.append((len(self._code), label))

    def catch(self, signal: int, label: str) -> None:
        """Goes to `label` when `signal` comes; there is no way back from there."""
        action = self.data(struct.pack("<4Q", 0, SA_RESTORER, 0, 0))  # sa_handler, sa_flags, sa_restorer, sa_mask
        self._addresses += [(action - DATA_ADDRESS, label), (action - DATA_ADDRESS + 16, label)]
        self.call(RT_SIGACTION, signal, action, 0, 8)

    def invalid(self) -> None:
        """An instruction that no CPU has: the kernel kills the program with SIGILL."""
        self._code += b"\x0f\x0b"

    def write(self, content: bytes, descriptor: int = 1) -> None:
        """Writes all of `content`, however many calls it takes; stops at the first error."""
        start, end = f"write {len(self._code)}", f"written {len(self._code)}"
        self.move("rbx", self.data(content))
        self.move("rbp", len(content))
        self.label(start)
        self.call(WRITE, descriptor, "rbx", "rbp")
        self.test("rax")
        self.jump(end, "not positive")
        self.add("rbx", "rax")
        self.subtract("rbp", "rax")
        self.jump(start, "nonzero")
        self.label(end)

    def reboot(self, command: int = LINUX_REBOOT_CMD_RESTART) -> None:
        """Syncs and makes the reboot call, which does not return when it works."""
        self.call(SYNC)
        self.call(REBOOT, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, command)

    def _two(self, opcode: int, target: int, source: int) -> None:
        """A 64-bit instruction `opcode` with two registers: REX.W, opcode, ModRM."""
        self._code += bytes([0x48 | (source >> 3) << 2 | target >> 3, opcode, 0xC0 | (source & 7) << 3 | target & 7])

    def elf(self) -> bytes:
        """The program as an ELF64 executable: one segment of headers and code, one of data (ELF-64 1.5)."""
        code = bytearray(self._code)
        if len(code) + _ELF_HEADERS > _CODE_LIMIT:
            raise ImageError("init: the program is larger than 4 MiB")
        for at, label in self._jumps:
            struct.pack_into("<i", code, at - 4, self._labels[label] - at)
        entry = CODE_ADDRESS + _ELF_HEADERS
        data = bytearray(self._data)
        for at, label in self._addresses:
            struct.pack_into("<Q", data, at, entry + self._labels[label])
        data_offset = (_ELF_HEADERS + len(code) + 4095) & ~4095
        header = b"\x7fELF\x02\x01\x01" + bytes(9)
        header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        code_size = _ELF_HEADERS + len(code)
        data_size = len(data)
        segments = struct.pack("<IIQQQQQQ", 1, 5, 0, CODE_ADDRESS, CODE_ADDRESS, code_size, code_size, 4096)
        segments += struct.pack("<IIQQQQQQ", 1, 6, data_offset, DATA_ADDRESS, DATA_ADDRESS, data_size, data_size, 4096)
        image = header + segments + bytes(code)
        return image + bytes(data_offset - len(image)) + bytes(data)
