"""The assembler by itself: known encodings, labels and directives, and what it says about a wrong line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import KvmpyError
from kvmpy.testing.asm import AsmError, assemble


@pytest.mark.parametrize(
    ("bits", "source", "code"),
    [
        (64, "mov eax, 5", "b8 05 00 00 00"),
        (64, "mov rax, 5", "48 c7 c0 05 00 00 00"),
        (64, "mov rax, 0x80000000", "48 b8 00 00 00 80 00 00 00 00"),
        (64, "mov ax, 5", "66 b8 05 00"),
        (32, "mov ax, 5", "66 b8 05 00"),
        (16, "mov ax, 5", "b8 05 00"),
        (16, "mov eax, 5", "66 b8 05 00 00 00"),
        (64, "mov [rbx], al", "88 03"),
        (64, "mov byte [0x1000], 1", "c6 04 25 00 10 00 00 01"),
        (32, "mov byte [0x1000], 1", "c6 05 00 10 00 00 01"),
        (16, "mov byte [0x1000], 1", "c6 06 00 10 01"),
        (16, "mov byte [0x1000 - 1], 1", "c6 06 ff 0f 01"),
        (16, "a32 mov byte [0xfee00000], 1", "67 c6 05 00 00 e0 fe 01"),
        (64, "mov rax, [rel $ + 7]", "48 8b 05 00 00 00 00"),
        (64, "mov dword [rel $ + 10], 1", "c7 05 00 00 00 00 01 00 00 00"),
        (64, "mov rax, [rsp]", "48 8b 04 24"),
        (64, "mov rax, [rcx + rsp]", "48 8b 04 0c"),
        (64, "mov rax, [4*rcx + rbp]", "48 8b 44 8d 00"),
        (64, "mov cr3, rax", "0f 22 d8"),
        (32, "mov cr0, eax", "0f 22 c0"),
        (64, "mov dr7, rax", "0f 23 f8"),
        (16, "mov ss, ax", "8e d0"),
        (64, "in al, dx", "ec"),
        (64, "in eax, 0x71", "e5 71"),
        (64, "out 0xe9, al", "e6 e9"),
        (64, "out dx, ax", "66 ef"),
        (16, "out dx, eax", "66 ef"),
        (64, "dec ecx", "ff c9"),
        (32, "dec ecx", "49"),
        (64, "add eax, -1", "83 c0 ff"),
        (64, "add eax, 0xffffffff", "83 c0 ff"),
        (64, "cmp al, 'A'", "3c 41"),
        (64, "push 5", "6a 05"),
        (16, "push dword 5", "66 6a 05"),
        (64, "rep movsb", "f3 a4"),
        (16, "a32 rep stosd", "f3 67 66 ab"),
        (64, "fs mov rax, [0]", "64 48 8b 04 25 00 00 00 00"),
        (64, "iretq", "48 cf"),
        (64, "retfq", "48 cb"),
        (64, "lretq", "48 cb"),
        (64, "sysretq", "48 0f 07"),
        (32, "sysexit", "0f 35"),
        (16, "jmp 0x08:0x1000", "ea 00 10 08 00"),
        (16, "jmp dword 0x08:0x100000", "66 ea 00 00 10 00 08 00"),
        (32, "jmp far [eax]", "ff 28"),
        (64, "jmp far qword [rax]", "48 ff 28"),
        (64, "int3", "cc"),
        (64, "int 0x80", "cd 80"),
        (64, "popcnt rax, rbx", "f3 48 0f b8 c3"),
        (64, "lock cmpxchg16b [rdi]", "f0 48 0f c7 0f"),
        (64, "MOV EAX, DWORD PTR [RAX] ; anything", "8b 00"),
    ],
)
def test_encodes(bits: int, source: str, code: str) -> None:
    assert assemble(source, bits=bits).hex(" ") == code


def test_the_code_of_a_loop() -> None:
    code = assemble("mov ecx, 3\nagain: dec ecx\njnz again\nhlt", bits=64)
    assert code == bytes.fromhex("b9 03 00 00 00 ff c9 75 fc f4")


def test_a_label_is_counted_from_the_origin() -> None:
    assert assemble("nop\nhere: mov eax, here", origin=0x7C00) == bytes.fromhex("90 b8 01 7c 00 00")


def test_labels_are_told() -> None:
    assert assemble("nop\nhere: hlt\nsize equ $ - $$", origin=0x1000).labels == {"here": 0x1001, "size": 2}


def test_constants_come_from_outside() -> None:
    assert assemble("mov dx, PORT", bits=16, PORT=0x3F8) == b"\xba\xf8\x03"


@pytest.mark.parametrize(("filling", "opcode"), [(0x7F, "eb 7f"), (0x80, "e9 80 00 00 00")])
def test_a_jump_is_short_where_that_reaches(filling: int, opcode: str) -> None:
    code = assemble(f"jmp end\ntimes {filling} nop\nend:")
    assert code == bytes.fromhex(opcode) + b"\x90" * filling


def test_a_jump_that_grows_pushes_another_out_of_reach() -> None:
    code = assemble("jmp a\njmp b\ntimes 126 nop\na: times 2 nop\nb:")
    assert code.startswith(bytes.fromhex("e9 83 00 00 00 e9 80 00 00 00"))


def test_near_takes_the_long_form() -> None:
    assert assemble("jmp near end\nend:") == bytes.fromhex("e9 00 00 00 00")


def test_a_forward_displacement_is_long_where_it_must_be() -> None:
    assert assemble("mov al, [rbx + far_away]\nfar_away equ 0x100") == bytes.fromhex("8a 83 00 01 00 00")


def test_a_local_label_belongs_to_the_label_before_it() -> None:
    assert assemble("a:\n.x: jmp .x\nb:\n.x: jmp .x\njmp a.x") == bytes.fromhex("eb fe eb fe eb fa")


def test_bits_switches_the_mode() -> None:
    source = "jmp dword 8:protected\nbits 32\nprotected: mov eax, 1"
    assert assemble(source, bits=16) == bytes.fromhex("66 ea 08 00 00 00 08 00 b8 01 00 00 00")


def test_data_of_all_widths() -> None:
    source = "db 1, 'ab', -1\ndw 0x1234\ndd here\nhere: dq 1 << 63"
    assert assemble(source) == bytes.fromhex("01 61 62 ff 34 12 0a 00 00 00 00 00 00 00 00 00 00 80")


def test_a_string_is_padded_to_the_width() -> None:
    assert assemble("dw 'abc'") == b"abc\0"


def test_a_semicolon_in_a_string_is_no_comment() -> None:
    assert assemble("db ';' ; a comment") == b";"


def test_times_fills_up_to_a_boot_sector() -> None:
    code = assemble("cli\nhlt\ntimes 510 - ($ - $$) db 0\ndw 0xaa55", bits=16, origin=0x7C00)
    assert code == b"\xfa\xf4" + bytes(508) + b"\x55\xaa"


def test_align_counts_from_address_zero() -> None:
    assert assemble("align 8, 0\ndb 1\nalign 4", origin=5) == bytes.fromhex("00 00 00 01 90 90 90")


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("10 - 4 - 3", 3),
        ("1 << 4 | 0b11", 19),
        ("~0 & 0xf", 15),
        ("7 / 2 % 2", 1),
    ],
)
def test_arithmetic(value: str, result: int) -> None:
    assert assemble(f"db {value}") == bytes([result])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mov eax, bl", "mov does not take these operands"),
        ("frob eax", "there is no instruction called 'frob'"),
        ("rep", "rep needs an instruction behind it, on the same line"),
        ("inc [rax]", "say byte, word, dword or qword for the operand of inc"),
        ("movzx eax, [rax]", "say byte, word, dword or qword for the operand of movzx"),
        ("push eax", "64-bit mode has no push with these operands"),
        ("mov al, 256", "0x100 does not fit into 8 bits"),
        ("mov eax, nowhere", "nothing is called 'nowhere'"),
        ("mov ah, r8b", "ah, bh, ch and dh cannot stand beside what needs a REX prefix"),
        ("mov eax, [rsp*2]", "the stack pointer cannot be an index"),
        ("mov eax, [rax*3]", "the scale of an index is 1, 2, 4 or 8"),
        ("mov eax, [rax + ebx]", "ebx cannot be part of this address"),
        ("mov eax, [bx]", "64-bit mode has no 16-bit addresses"),
        ("mov eax, [0x80000000]", "0x80000000 does not fit into 32 bits"),
        ("mov eax, [rax", "expected '+' before 'end of line'"),
        ("jmp short $ + 1000", "0x3e6 does not fit into 8 bits"),
        ("a: nop\na: nop", "'a' is there already"),
        ("eax: nop", "eax cannot be a label"),
        ("nop nop", "nop does not take these operands"),
        ("hlt ]", "expected a number or a name before ']'"),
        ("db 1 2", "did not expect '2' here"),
        ("db 1 / 0", "division by zero"),
        ("db 1 << 65", "a shift goes from 0 to 64 bits"),
        ("db 300", "0x12c does not fit into 8 bits"),
        ("mov eax, @", "cannot read '@'"),
        ("times -1 nop", "times -1: what stands before it is 1 bytes too long"),
        ("times 1 << 40 db 0", "the code would be longer than 16 MiB"),
        ("align 3", "align takes a power of two, and a byte to fill with"),
        ("bits 8", "bits is 16, 32 or 64, not 8"),
        ("times 1 << 20 nop", "times repeats an instruction at most 65536 times"),
    ],
)
def test_a_wrong_line_is_named(source: str, message: str) -> None:
    with pytest.raises(AsmError) as caught:
        assemble("nop\n" + source)
    line = 3 if source.startswith("a: nop") else 2
    assert str(caught.value).startswith(f"line {line}: {message}")


def test_a_length_that_depends_on_itself_is_refused() -> None:
    with pytest.raises(AsmError, match="the labels do not come to rest: a length depends on itself"):
        assemble("a: times 5 - (b - a) nop\nb:")


def test_a_64_bit_register_needs_64_bit_mode() -> None:
    with pytest.raises(AsmError, match="line 1: 32-bit mode has no mov with these operands"):
        assemble("mov rax, rbx", bits=32)


def test_a_constant_cannot_also_be_a_label() -> None:
    with pytest.raises(AsmError, match="'A' is given from outside, and defined in the source"):
        assemble("A: nop", A=1)


def test_the_error_is_a_value_error_of_kvmpy() -> None:
    assert AsmError.__bases__ == (KvmpyError, ValueError)


WORDS = [
    "mov", "add", "jmp", "rep", "lock", "db", "dw", "align", "times", "bits", "equ", "eax", "rax", "al", "[", "]", "+",
    "-", "*", ",", ":", "(", ")", "5", "0x1000", "name", "byte", "far", "rel", "$", "'a'",
]  # fmt: skip
LINES = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join) | st.text(max_size=20)


@given(st.lists(LINES, max_size=4).map("\n".join), st.sampled_from([16, 32, 64]))
def test_any_text_ends_in_code_or_in_one_sentence(source: str, bits: int) -> None:
    try:
        message = ""
        assemble(source, bits=bits)
    except AsmError as error:
        message = str(error)
    assert "\n" not in message


@given(st.lists(st.integers(0, 200), min_size=2, max_size=8), st.data())
def test_jumps_land_on_their_labels_whatever_lies_between(gaps: list[int], data: st.DataObject) -> None:
    targets = [data.draw(st.integers(0, len(gaps) - 1)) for _ in gaps]
    lines = [f"l{index}: jmp l{target}\n times {gaps[index]} nop" for index, target in enumerate(targets)]
    code = assemble("\n".join(lines))
    for index, target in enumerate(targets):
        start = code.labels[f"l{index}"]
        end = start + (2 if code[start] == 0xEB else 5)
        assert end + int.from_bytes(code[start + 1 : end], "little", signed=True) == code.labels[f"l{target}"]
