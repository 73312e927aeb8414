"""The assembler against GNU binutils (installed by scripts/test): what objdump reads must be what was written."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest

from kvmpy.testing.asm import assemble
from kvmpy.testing.asm.forms import forms, mnemonics

MACHINES = {16: "i8086", 32: "i386", 64: "i386:x86-64"}

# Written as objdump writes them, so that the text comes back as it went in.
STATEMENTS = {
    16: """
        mov ax,0x1234
        mov eax,0x12345678
        mov ds,ax
        mov eax,cr0
        mov cr0,eax
        mov ax,ds
        mov al,BYTE PTR [bx+si]
        mov WORD PTR [bp+di-0x2],ax
        mov DWORD PTR [bx],0x5
        mov al,BYTE PTR [bp+0x0]
        mov cx,WORD PTR ds:0x1234
        mov ax,WORD PTR [eax+ebx*4+0x10]
        mov al,BYTE PTR es:[di]
        lgdtw ds:0x7c40
        lidtw [bx]
        lgdtd ds:0x7c40
        push 0x5
        pushd 0x5
        push ax
        push eax
        push cs
        pop ds
        iret
        iretd
        ret
        retf
        retfd
        in al,dx
        in eax,dx
        out 0xe9,al
        out dx,ax
        rep outs dx,WORD PTR ds:[si]
        rep stos WORD PTR es:[di],ax
        int 0x10
        call 0x8
        jmp DWORD PTR [bx]
        jmp 0x8:0x100
        jmp 0x8:0x100000
        je 0x10
        jne 0x1000
        call 0x1000
        loop 0x2
        jecxz 0x3
        cli
        hlt
    """,
    32: """
        mov eax,0x5
        mov ax,0x5
        mov eax,DWORD PTR ds:0xfee00000
        mov DWORD PTR [ebp+0x0],eax
        mov al,BYTE PTR [esp]
        mov eax,DWORD PTR [bx+si]
        mov dr7,eax
        inc eax
        dec cx
        inc BYTE PTR [eax]
        push 0x12345678
        pushw 0x5
        pusha
        popa
        iret
        lgdtd [eax]
        fxsave [eax]
        cmpxchg8b QWORD PTR [esi]
        lock xadd DWORD PTR [eax],ecx
        jmp 0x10:0x100000
        call 0x10:0x100000
        jmp FWORD PTR [eax]
        ltr ax
        str ax
        sysexit
        movzx eax,BYTE PTR [ecx]
        imul eax,ebx,0x5
        imul eax,DWORD PTR [ebx],0x1234
        shl eax,1
        shl eax,0x5
        sar BYTE PTR [eax],cl
        jle 0x80
        jg 0x82
        jmp 0x1000
        jcxz 0x3
        enter 0x10,0x0
    """,
    64: """
        mov rax,0x5
        mov rax,0xffffffffffffffff
        movabs rax,0x123456789abcdef0
        mov eax,0xffffffff
        mov sil,0x5
        mov r8b,al
        mov ah,bh
        mov r15,QWORD PTR [r12+r13*8-0x80]
        mov rax,QWORD PTR [r13+0x0]
        mov rax,QWORD PTR [r12]
        mov eax,DWORD PTR ds:0x1000
        mov eax,DWORD PTR [rax*4+0x1000]
        mov eax,DWORD PTR [ecx]
        mov rax,QWORD PTR fs:0x0
        mov BYTE PTR gs:[rbx],0x1
        mov cr8,rax
        mov rbx,cr4
        mov dr6,rdx
        mov gs,eax
        movzx rax,WORD PTR [rsp+0x8]
        movsx rax,BYTE PTR [rdi]
        movsxd rax,ecx
        lea rax,[rip+0x10]
        add rax,0x7f
        add rax,0x80
        add QWORD PTR [rax],0xffffffffffffff80
        adc r9,r10
        cmp BYTE PTR [rdi],0x0
        test rax,rax
        test DWORD PTR [rax],0x10
        not r8
        neg BYTE PTR [r8]
        mul rcx
        div QWORD PTR [rdi]
        imul rax,r11
        push r12
        push 0x12345678
        push QWORD PTR [rax]
        pop rbp
        pushf
        popf
        jmp rax
        jmp 0x0
        jmp 0x1000
        jae 0x0
        jb 0x1000
        call 0x0
        jrcxz 0x2
        jmp QWORD PTR [rax]
        call QWORD PTR [r8]
        rex.W jmp FWORD PTR [rax]
        ret 0x8
        iretq
        int3
        ins DWORD PTR es:[rdi],dx
        rep movs QWORD PTR es:[rdi],QWORD PTR ds:[rsi]
        rep stos BYTE PTR es:[rdi],al
        lods al,BYTE PTR ds:[rsi]
        cpuid
        rdtscp
        rdmsr
        wrmsr
        sgdt [rax]
        sidt [rax]
        lidt [rax]
        invlpg BYTE PTR [rax]
        swapgs
        sysretq
        sysretd
        vmcall
        vmmcall
        popcnt rax,rbx
        fwait
        fninit
        fxrstor [rsp]
        ldmxcsr DWORD PTR [rax]
        stac
        clac
        lock cmpxchg16b OWORD PTR [rdi]
        lock cmpxchg QWORD PTR [rbx],rcx
        xchg QWORD PTR [rbx],rcx
        xgetbv
        xsetbv
        xsave [rdi]
        xrstor [rdi]
        movaps xmm0,XMMWORD PTR [rdi]
        movups XMMWORD PTR [rdi],xmm15
        movq xmm8,rax
        movq rax,xmm1
        movq xmm0,QWORD PTR [rax]
        movd xmm0,ecx
        pxor xmm9,xmm9
        ud2
        rdrand rax
        setne al
        cmovb rax,QWORD PTR [rbx]
        bt QWORD PTR [rax],0x3
        bswap r8
        pause
        nop
        nop WORD PTR [rax+rax*1]
    """,
}

# What objdump has a name of its own for, and how our source says it.
OURS = (
    (r"^(l[gi]dt)w ", r"\1 "),
    (r"^(l[gi]dt)d ds", r"o32 \1 ds"),
    (r"^(l[gi]dt)d ", r"\1 "),
    (r"^pushd ", "push dword "),
    (r"^pushw ", "push word "),
    (r"^jmp 0x8:0x100000", "jmp dword 0x8:0x100000"),
    (r"\bds:(0x\w+)$", r"[\1]"),
    (r"\b([d-g]s):(0x\w+)", r"[\1:\2]"),
    (r"\b([a-g]s):\[", r"[\1:"),
    (r"^rex.W jmp FWORD PTR", "jmp far qword"),
    (r"FWORD PTR", "far"),
    (r"OWORD", "XMMWORD"),
    (r"\[rip\+0x10\]", "[rel $ + 7 + 0x10]"),
    (r"(ins|outs|stos|movs|lods) .*?([BWDQ])(YTE|WORD|ORD) PTR.*", lambda m: m[1] + m[2].lower()),
)


def ours(text: str) -> str:
    for pattern, replacement in OURS:
        text = re.sub(pattern, replacement, text)
    return text


def disassemble(code: bytes, bits: int, path: Path) -> list[str]:
    """One text an instruction, with single blanks and no comments."""
    path.write_bytes(code)
    command = ["objdump", "-D", "-b", "binary", "-m", MACHINES[bits], "-M", "intel", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^ +[0-9a-f]+:\t(.*)$", listing, re.MULTILINE)
    return [re.sub(r"\s+", " ", line.partition("#")[0]).strip() for line in lines]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_objdump_reads_what_was_written(bits: int, tmp_path: Path) -> None:
    written = [line.strip() for line in STATEMENTS[bits].strip().splitlines()]
    read = [disassemble(assemble(ours(line), bits=bits), bits, tmp_path / "code") for line in written]
    assert read == [[line] for line in written]


GENERAL = {8: ("al", "dh"), 16: ("ax", "di"), 32: ("eax", "esi"), 64: ("rax", "r13")}
MEMORY = {16: "[bx+di+0x12]", 32: "[ebx+edi*2+0x1234]", 64: "[r9+rdi*8+0x1234]"}
POINTERS = {8: "byte ptr ", 16: "word ptr ", 32: "dword ptr ", 64: "qword ptr ", 128: "xmmword ptr "}
NUMBERS = {"imm8": "0x71", "imm16": "0x7172", "imm32": "0x71727374", "imm64": "0x7172737475767778"}
NUMBERS |= {"simm8": "-5", "simm32": "-0x71727374", "1": "1"}


def samples(pattern: str, bits: int) -> list[str]:
    """Operands that `pattern` stands for."""
    size = int(re.sub(r"\D", "", pattern) or 0)
    if pattern in NUMBERS:
        return [NUMBERS[pattern]]
    if pattern in ("sreg", "cr", "dr"):
        return {"sreg": ["ds", "gs"], "cr": ["cr0", "cr3"], "dr": ["dr7"]}[pattern]
    if pattern in ("xmm", "xm32", "xm64", "xm128"):
        registers = ["xmm1", "xmm12" if bits == 64 else "xmm5"]
        return registers + ([POINTERS[size] + MEMORY[bits]] if size else [])
    if re.fullmatch(r"r\d+", pattern):
        return list(GENERAL[size])
    if re.fullmatch(r"rm\d+", pattern):
        return [GENERAL[size][1], POINTERS[size] + MEMORY[bits]]
    return [MEMORY[bits] if pattern == "m" else pattern]


# Jumps have other spellings in GNU as; for the rest it demands suffixes, or takes another encoding of the same effect.
UNLIKE = re.compile(
    r".* (mfar|ptr|rel\d+)|push -?0x|mov[sz]x r\w+, dh|(sysret|sysexitd?) $|xchg|mov r\w+, [dg]s|(sldt|str) r"
)


def cases(bits: int) -> list[str]:
    """Statements for every form of every instruction that a mode has."""
    found = []
    for mnemonic in sorted(mnemonics()):
        for form in forms(mnemonic):
            if form.valid(bits):
                choices = itertools.product(*(samples(pattern, bits) for pattern in form.operands))
                found += [f"{mnemonic} {', '.join(operands)}" for operands in choices]
    return [case for case in found if not UNLIKE.match(case)]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_every_form_means_what_gnu_as_means(bits: int, tmp_path: Path) -> None:
    written = cases(bits)
    (tmp_path / "source").write_text(f".intel_syntax noprefix\n.code{bits}\n" + "\n".join(written) + "\n")
    machine = "--64" if bits == 64 else "--32"
    subprocess.run(["as", machine, "-o", tmp_path / "object", tmp_path / "source"], capture_output=True, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "object", tmp_path / "text"], check=True)
    theirs = disassemble((tmp_path / "text").read_bytes(), bits, tmp_path / "text")
    assert disassemble(assemble("\n".join(written), bits=bits), bits, tmp_path / "code") == theirs
