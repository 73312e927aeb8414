"""Instructions for the system, ports and tables, and for x87 and SSE; `forms` explains the notation."""

from __future__ import annotations

SYSTEM = """
    int imm8                | CD ib
    int1                    | F1
    int3                    | CC
    into                    | CE n64
    iret                    | CF
    iretw                   | o16 CF
    iretd                   | o32 CF
    iretq                   | o64 CF
    in al imm8              | E4 ib
    in ax imm8              | o16 E5 ib
    in eax imm8             | o32 E5 ib
    in al dx                | EC
    in ax dx                | o16 ED
    in eax dx               | o32 ED
    out imm8 al             | E6 ib
    out imm8 ax             | o16 E7 ib
    out imm8 eax            | o32 E7 ib
    out dx al               | EE
    out dx ax               | o16 EF
    out dx eax              | o32 EF
    insb                    | 6C
    insw                    | o16 6D
    insd                    | o32 6D
    outsb                   | 6E
    outsw                   | o16 6F
    outsd                   | o32 6F
    hlt                     | F4
    cli                     | FA
    sti                     | FB
    clac                    | 0F 01 CA
    stac                    | 0F 01 CB
    clts                    | 0F 06
    cpuid                   | 0F A2
    rdtsc                   | 0F 31
    rdtscp                  | 0F 01 F9
    rdpmc                   | 0F 33
    rdmsr                   | 0F 32
    wrmsr                   | 0F 30
    invd                    | 0F 08
    wbinvd                  | 0F 09
    invlpg m                | 0F 01 /7
    invpcid r32 m           | 66 0F 38 82 /r n64
    invpcid r64 m           | 66 0F 38 82 /r x64
    sgdt m                  | 0F 01 /0
    sidt m                  | 0F 01 /1
    lgdt m                  | 0F 01 /2
    lidt m                  | 0F 01 /3
    smsw m                  | 0F 01 /4
    smsw rv                 | 0F 01 /4
    lmsw m                  | 0F 01 /6
    lmsw r16                | 0F 01 /6
    sldt m                  | 0F 00 /0
    sldt rv                 | 0F 00 /0
    str m                   | 0F 00 /1
    str rv                  | 0F 00 /1
    lldt m                  | 0F 00 /2
    lldt r16                | 0F 00 /2
    ltr m                   | 0F 00 /3
    ltr r16                 | 0F 00 /3
    verr r16                | 0F 00 /4
    verw r16                | 0F 00 /5
    swapgs                  | 0F 01 F8 x64
    rdfsbase r64            | o64 F3 0F AE /0
    rdgsbase r64            | o64 F3 0F AE /1
    wrfsbase r64            | o64 F3 0F AE /2
    wrgsbase r64            | o64 F3 0F AE /3
    syscall                 | 0F 05
    sysret                  | 0F 07
    sysretd                 | o32 0F 07
    sysretq                 | o64 0F 07
    sysenter                | 0F 34
    sysexit                 | 0F 35
    sysexitd                | o32 0F 35
    sysexitq                | o64 0F 35
    vmcall                  | 0F 01 C1
    vmmcall                 | 0F 01 D9
    monitor                 | 0F 01 C8
    mwait                   | 0F 01 C9
    xgetbv                  | 0F 01 D0
    xsetbv                  | 0F 01 D1
    xsave m                 | 0F AE /4
    xsave64 m               | o64 0F AE /4
    xsaveopt m              | 0F AE /6
    xrstor m                | 0F AE /5
    xrstor64 m              | o64 0F AE /5
    fxsave m                | 0F AE /0
    fxsave64 m              | o64 0F AE /0
    fxrstor m               | 0F AE /1
    fxrstor64 m             | o64 0F AE /1
    ldmxcsr m               | 0F AE /2
    stmxcsr m               | 0F AE /3
    clflush m               | 0F AE /7
    clflushopt m            | 66 0F AE /7
    clwb m                  | 66 0F AE /6
    prefetcht0 m            | 0F 18 /1
    lfence                  | 0F AE E8
    mfence                  | 0F AE F0
    sfence                  | 0F AE F8
"""

FLOATING = """
    fwait                   | 9B
    finit                   | 9B DB E3
    fninit                  | DB E3
    fnclex                  | DB E2
    fnop                    | D9 D0
    fld1                    | D9 E8
    fldz                    | D9 EE
    fldpi                   | D9 EB
    faddp                   | DE C1
    fmulp                   | DE C9
    fnstsw ax               | DF E0
    fnstsw m                | DD /7
    fnstcw m                | D9 /7
    fldcw m                 | D9 /5
    fnsave m                | DD /6
    frstor m                | DD /4
    emms                    | 0F 77
    movaps xmm xm128        | 0F 28 /r
    movaps xm128 xmm        | 0F 29 /r
    movups xmm xm128        | 0F 10 /r
    movups xm128 xmm        | 0F 11 /r
    movdqa xmm xm128        | 66 0F 6F /r
    movdqa xm128 xmm        | 66 0F 7F /r
    movdqu xmm xm128        | F3 0F 6F /r
    movdqu xm128 xmm        | F3 0F 7F /r
    movd xmm r32            | 66 0F 6E /r
    movd xmm m              | 66 0F 6E /r
    movd r32 xmm            | 66 0F 7E /r
    movd m xmm              | 66 0F 7E /r
    movq xmm xm64           | F3 0F 7E /r
    movq xm64 xmm           | 66 0F D6 /r
    movq xmm r64            | o64 66 0F 6E /r
    movq r64 xmm            | o64 66 0F 7E /r
    movss xmm xm32          | F3 0F 10 /r
    movss xm32 xmm          | F3 0F 11 /r
    movsd xmm xm64          | F2 0F 10 /r
    movsd xm64 xmm          | F2 0F 11 /r
    addps xmm xm128         | 0F 58 /r
    mulps xmm xm128         | 0F 59 /r
    subps xmm xm128         | 0F 5C /r
    addss xmm xm32          | F3 0F 58 /r
    addsd xmm xm64          | F2 0F 58 /r
    mulsd xmm xm64          | F2 0F 59 /r
    subsd xmm xm64          | F2 0F 5C /r
    divsd xmm xm64          | F2 0F 5E /r
    sqrtsd xmm xm64         | F2 0F 51 /r
    andps xmm xm128         | 0F 54 /r
    orps xmm xm128          | 0F 56 /r
    xorps xmm xm128         | 0F 57 /r
"""
