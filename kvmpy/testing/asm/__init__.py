"""A small x86 assembler, so that tests, benchmarks and examples need no binutils.

    code = assemble('''
            mov     dx, PORT
            mov     rsi, message
            mov     ecx, length
            rep outsb
            hlt
    message: db     "hello", 10
    length  equ     $ - message
    ''', bits=64, origin=0x1000, PORT=0xE9)

Intel syntax, much as NASM has it:

- One statement a line: `[label:] [times COUNT] [prefix...] mnemonic [operand, ...]`; a comment goes from `;` on.
- Operands: registers; numbers (`10`, `0x1f`, `0b101`, `'A'`); memory `[fs:rbx + rcx*8 - 4]`, `[label]`, and
  `[rel label]`; a size before them where nothing else says it: `byte`, `word`, `dword`, `qword`.
- Jumps take the shortest form that reaches, or `short` or `near`; far ones are `jmp 0x08:label`, `jmp dword
  0x08:label`, `jmp far [pointer]`.
- Directives: `bits 16|32|64` from here on, `db dw dd dq`, `align N[, fill]`, `NAME equ value`, `times`.
- Expressions: `+ - * / % << >> & ^ | ~ ( )`, names, `$` (here) and `$$` (the origin).  `.name` is local to the label
  before it.
- Prefixes: `lock`, `rep` and its kin, `fs` and its kin, `o16 o32 o64` and `a16 a32 a64` for operand and address size.

The instructions are those of `table.py`; `db` writes any other.
"""

from __future__ import annotations

from kvmpy.testing.asm.expression import AsmError
from kvmpy.testing.asm.source import Source

__all__ = ["AsmError", "Code", "assemble"]


class Code(bytes):
    """Machine code; `labels` are the values of all names in its source."""

    labels: dict[str, int]


def assemble(source: str, /, *, bits: int = 64, origin: int = 0, **constants: int) -> Code:
    """The machine code of `source`, to be loaded at address `origin`, in the mode of `bits` bits.

    `constants` are names that the source may use.  Raises `AsmError`, which names the line, for what it cannot read.
    """
    statements = Source(source, bits)
    symbols = statements.layout(origin, constants)
    code = Code(statements.emit(origin, symbols, final=True))
    code.labels = {name: symbols[name] for name in statements.defined}
    return code
