"""The instructions, one encoding a line; `forms` explains the notation."""

from __future__ import annotations

from kvmpy.testing.asm.table_system import FLOATING, SYSTEM

CONDITIONS = {
    "o": 0, "no": 1, "b": 2, "c": 2, "nae": 2, "ae": 3, "nb": 3, "nc": 3, "e": 4, "z": 4, "ne": 5, "nz": 5,
    "be": 6, "na": 6, "a": 7, "nbe": 7, "s": 8, "ns": 9, "p": 10, "pe": 10, "np": 11, "po": 11,
    "l": 12, "nge": 12, "ge": 13, "nl": 13, "le": 14, "ng": 14, "g": 15, "nle": 15,
}  # fmt: skip


def _arithmetic(digit: int, name: str) -> str:
    base = digit << 3
    return f"""
        {name} al imm8        | {base + 4:02X} ib
        {name} rm8 imm8       | 80 /{digit} ib
        {name} rmv simm8      | 83 /{digit} ib
        {name} av immv        | {base + 5:02X} iv
        {name} rmv immv       | 81 /{digit} iv
        {name} rm8 r8         | {base:02X} /r
        {name} rmv rv         | {base + 1:02X} /r
        {name} r8 rm8         | {base + 2:02X} /r
        {name} rv rmv         | {base + 3:02X} /r"""


def _shift(digit: int, name: str) -> str:
    return f"""
        {name} rm8 1          | D0 /{digit}
        {name} rmv 1          | D1 /{digit}
        {name} rm8 cl         | D2 /{digit}
        {name} rmv cl         | D3 /{digit}
        {name} rm8 imm8       | C0 /{digit} ib
        {name} rmv imm8       | C1 /{digit} ib"""


def _unary(opcode: int, digit: int, name: str) -> str:
    return f"""
        {name} rm8            | {opcode:02X} /{digit}
        {name} rmv            | {opcode + 1:02X} /{digit}"""


def _bit_test(digit: int, name: str) -> str:
    return f"""
        {name} rmv imm8       | 0F BA /{digit} ib
        {name} rmv rv         | 0F {0x83 + (digit << 3):02X} /r"""


def _string(opcode: int, name: str) -> str:
    return f"""
        {name}b               | {opcode:02X}
        {name}w               | o16 {opcode + 1:02X}
        {name}d               | o32 {opcode + 1:02X}
        {name}q               | o64 {opcode + 1:02X}"""


def _condition(name: str, code: int) -> str:
    return f"""
        j{name} rel8          | {0x70 + code:02X} cb
        j{name} relv          | 0F {0x80 + code:02X} cv d64
        set{name} rm8         | 0F {0x90 + code:02X} /0
        cmov{name} rv rmv     | 0F {0x40 + code:02X} /r"""


def _packed(line: str) -> str:
    opcode, name = line.split()
    return f"""
        {name} xmm xm128      | 66 0F {opcode} /r"""


_GENERAL = """
    mov rm8 r8              | 88 /r
    mov rmv rv              | 89 /r
    mov r8 rm8              | 8A /r
    mov rv rmv              | 8B /r
    mov m sreg              | 8C /r
    mov rv sreg             | 8C /r
    mov sreg m              | 8E /r
    mov sreg r16            | 8E /r
    mov sreg r32            | 8E /r
    mov r32 cr              | 0F 20 /r n64
    mov r64 cr              | 0F 20 /r x64
    mov cr r32              | 0F 22 /r n64
    mov cr r64              | 0F 22 /r x64
    mov r32 dr              | 0F 21 /r n64
    mov r64 dr              | 0F 21 /r x64
    mov dr r32              | 0F 23 /r n64
    mov dr r64              | 0F 23 /r x64
    mov r8 imm8             | B0+r ib
    mov r16 imm16           | o16 B8+r iw
    mov r32 imm32           | o32 B8+r id
    mov r64 simm32          | o64 C7 /0 id
    mov r64 imm64           | o64 B8+r iq
    mov rm8 imm8            | C6 /0 ib
    mov rmv immv            | C7 /0 iv
    movabs r64 imm64        | o64 B8+r iq
    movzx rv rm8            | 0F B6 /r
    movzx r32 rm16          | o32 0F B7 /r
    movzx r64 rm16          | o64 0F B7 /r
    movsx rv rm8            | 0F BE /r
    movsx r32 rm16          | o32 0F BF /r
    movsx r64 rm16          | o64 0F BF /r
    movsxd r64 rm32         | o64 63 /r
    lea rv m                | 8D /r
    test al imm8            | A8 ib
    test av immv            | A9 iv
    test rm8 imm8           | F6 /0 ib
    test rmv immv           | F7 /0 iv
    test rm8 r8             | 84 /r
    test rmv rv             | 85 /r
    xchg rm8 r8             | 86 /r
    xchg rmv rv             | 87 /r
    xchg r8 rm8             | 86 /r
    xchg rv rmv             | 87 /r
    inc rv                  | v 40+r n64
    dec rv                  | v 48+r n64
    imul rv rmv             | 0F AF /r
    imul rv rmv simm8       | 6B /r ib
    imul rv rmv immv        | 69 /r iv
    shld rmv rv imm8        | 0F A4 /r ib
    shld rmv rv cl          | 0F A5 /r
    shrd rmv rv imm8        | 0F AC /r ib
    shrd rmv rv cl          | 0F AD /r
    bsf rv rmv              | 0F BC /r
    bsr rv rmv              | 0F BD /r
    popcnt rv rmv           | F3 0F B8 /r
    tzcnt rv rmv            | F3 0F BC /r
    lzcnt rv rmv            | F3 0F BD /r
    bswap r32               | o32 0F C8+r
    bswap r64               | o64 0F C8+r
    rdrand rv               | 0F C7 /6
    rdseed rv               | 0F C7 /7
    cmpxchg rm8 r8          | 0F B0 /r
    cmpxchg rmv rv          | 0F B1 /r
    cmpxchg8b m             | 0F C7 /1
    cmpxchg16b m            | o64 0F C7 /1
    xadd rm8 r8             | 0F C0 /r
    xadd rmv rv             | 0F C1 /r
    movnti m r32            | 0F C3 /r
    movnti m r64            | o64 0F C3 /r
    push rv                 | 50+r d64
    push es                 | 06 n64
    push cs                 | 0E n64
    push ss                 | 16 n64
    push ds                 | 1E n64
    push fs                 | 0F A0
    push gs                 | 0F A8
    push simm8              | v 6A ib d64
    push immv               | 68 iv d64
    push rmv                | FF /6 d64
    pop rv                  | 58+r d64
    pop es                  | 07 n64
    pop ss                  | 17 n64
    pop ds                  | 1F n64
    pop fs                  | 0F A1
    pop gs                  | 0F A9
    pop rmv                 | 8F /0 d64
    pushf                   | 9C
    pushfw                  | o16 9C d64
    pushfd                  | o32 9C d64
    pushfq                  | o64 9C d64
    popf                    | 9D
    popfw                   | o16 9D d64
    popfd                   | o32 9D d64
    popfq                   | o64 9D d64
    pusha                   | 60 n64
    popa                    | 61 n64
    pushad                  | o32 60 n64
    popad                   | o32 61 n64
    enter imm16 imm8        | C8 iw ib
    leave                   | C9
    jmp rel8                | EB cb
    jmp relv                | E9 cv d64
    jmp rmv                 | FF /4 d64
    jmp ptr                 | EA cp iw n64
    jmp mfar                | v FF /5
    call relv               | E8 cv d64
    call rmv                | FF /2 d64
    call ptr                | 9A cp iw n64
    call mfar               | v FF /3
    ret                     | C3
    ret imm16               | C2 iw
    retf                    | CB
    retf imm16              | CA iw
    retfw                   | o16 CB
    retfd                   | o32 CB
    retfq                   | o64 CB
    lret                    | CB
    lret imm16              | CA iw
    lretw                   | o16 CB
    lretd                   | o32 CB
    lretq                   | o64 CB
    loop rel8               | E2 cb
    loope rel8              | E1 cb
    loopne rel8             | E0 cb
    jcxz rel8               | a16 E3 cb n64
    jecxz rel8              | a32 E3 cb
    jrcxz rel8              | a64 E3 cb
    cbw                     | o16 98
    cwde                    | o32 98
    cdqe                    | o64 98
    cwd                     | o16 99
    cdq                     | o32 99
    cqo                     | o64 99
    xlatb                   | D7
    lahf                    | 9F
    sahf                    | 9E
    clc                     | F8
    stc                     | F9
    cmc                     | F5
    cld                     | FC
    std                     | FD
    nop                     | 90
    nop rmv                 | 0F 1F /0
    pause                   | F3 90
    ud2                     | 0F 0B
"""

TABLE = "".join(
    [
        _GENERAL,
        SYSTEM,
        FLOATING,
        *(
            _arithmetic(digit, name)
            for digit, name in enumerate(("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"))
        ),
        *(_shift(digit, name) for digit, name in ((0, "rol"), (1, "ror"), (2, "rcl"), (3, "rcr"))),
        *(_shift(digit, name) for digit, name in ((4, "shl"), (4, "sal"), (5, "shr"), (7, "sar"))),
        *(_unary(0xF6, digit, name) for digit, name in enumerate(("not", "neg", "mul", "imul", "div", "idiv"), 2)),
        _unary(0xFE, 0, "inc"),
        _unary(0xFE, 1, "dec"),
        *(_bit_test(digit, name) for digit, name in enumerate(("bt", "bts", "btr", "btc"), 4)),
        *(_string(opcode, name) for opcode, name in ((0xA4, "movs"), (0xA6, "cmps"), (0xAA, "stos"), (0xAC, "lods"))),
        _string(0xAE, "scas"),
        *(_condition(name, code) for name, code in CONDITIONS.items()),
        *map(_packed, ("EF pxor", "DB pand", "EB por", "FC paddb", "FE paddd", "D4 paddq", "74 pcmpeqb", "76 pcmpeqd")),
    ]
)
