"""Each instruction that KVM's emulator may leave undone, run by a guest in ring 0: the guest sees the same everywhere.

Where the processor or KVM runs it, `finish` is not called; where KVM gives up, `finish` makes the test pass.
"""

from __future__ import annotations

import struct
import sys

import pytest

from kvmpy.kvm.exits import (
    KVM_EXIT_HLT,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN,
    KVM_INTERNAL_ERROR_EMULATION,
)
from kvmpy.machine.assist import finish
from kvmpy.machine.assist.report import describe_crash
from kvmpy.memory import GuestMemory
from kvmpy.testing.asm import assemble
from kvmpy.units import MIB

IDT, PML4, PDPT, DIRECTORY, TABLE, STUBS = 0x4000, 0x9000, 0xA000, 0xB000, 0xC000, 0xD000
CODE, STACK = 0x10000, 0x80000
DATA, ABSENT, READ_ONLY, MMIO, USER = 0x30000, 0x32000, 0x34000, 0x36000, 0x38000

DB, BP, UD, NM, GP, PF, MF = 1, 3, 6, 7, 13, 14, 16
P, W, U = 1, 2, 4
AC, ZF = 1 << 18, 1 << 6
ARITHMETIC = 0x8D5


class Guest:
    """64-bit mode, ring 0, 2 MiB of RAM with 4 KiB pages; an exception loads r15 with its vector and halts."""

    def __init__(self, system, vm, vcpu, memory):
        self.vcpu, self.memory = vcpu, memory
        self.finished = 0
        for slot, region in enumerate(memory.regions):
            vm.set_memory_region(slot, region.start, region.buffer)
        vcpu.set_cpuid(system.supported_cpuid())
        pages = [page << 12 | P | W for page in range(512)]
        pages[ABSENT >> 12] = 0
        pages[READ_ONLY >> 12] &= ~W
        pages[MMIO >> 12] = 0xD0000000 | P | W
        pages[USER >> 12] |= U
        memory.write(TABLE, struct.pack("<512Q", *pages))
        for table, entry in ((PML4, PDPT), (PDPT, DIRECTORY), (DIRECTORY, TABLE)):
            memory.write(table, struct.pack("<Q", entry | P | W | U))
        for vector in range(32):
            stub = STUBS + 16 * vector
            memory.write(stub, assemble(f"mov r15d, {vector}\n hlt", bits=64))
            memory.write(IDT + 16 * vector, struct.pack("<HHBBHII", stub, 8, 0, 0x8E, 0, 0, 0))
        self.gdt(memory)
        sregs = vcpu.sregs()
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            segment = getattr(sregs, name)
            segment.base, segment.limit, segment.dpl = 0, 0xFFFFFFFF, 0
            segment.present = segment.s = segment.g = 1
            code = name == "cs"
            segment.selector, segment.type, segment.l, segment.db = (8, 11, 1, 0) if code else (16, 3, 0, 1)
        sregs.gdt.base, sregs.gdt.limit = 0x2000, 0x17
        sregs.idt.base, sregs.idt.limit = IDT, 0x1FF
        # PE MP ET NE WP PG; PAE OSFXSR OSXMMEXCPT; LME LMA.
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80010033, PML4, 0x620, 0x500
        vcpu.set_sregs(sregs)

    @staticmethod
    def gdt(memory):
        memory.write(0x2000, struct.pack("<3Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))

    def run(self, source, data=b"", *, at=DATA, origin=CODE, rflags=2, **registers):
        """Runs `source` to its end; the registers there."""
        code = assemble(source + "\n hlt", bits=64, origin=origin, **LAYOUT)
        self.labels = code.labels
        self.memory.write(origin, code)
        self.memory.write(at, data)
        regs = self.vcpu.regs()
        regs.rip, regs.rsp, regs.rflags, regs.r15 = origin, STACK, rflags, 0xFF
        for name, value in registers.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)
        while (reason := self.vcpu.run()) == KVM_EXIT_INTERNAL_ERROR:
            assert finish(self.vcpu, self.memory), describe_crash(self.vcpu, self.memory)
            self.finished += 1
        assert reason == KVM_EXIT_HLT, describe_crash(self.vcpu, self.memory)
        self.end = origin + len(code)
        return self.vcpu.regs()

    def completes(self, source, data=b"", **options):
        """As `run`, without an exception."""
        regs = self.run(source, data, **options)
        assert regs.r15 == 0xFF, f"exception {regs.r15}"
        assert regs.rip == self.end
        return regs

    def faults(self, vector, source, data=b"", *, error=None, **options):
        """Runs `source`, which ends with exception `vector` and `error` code; (RIP on the stack, registers)."""
        regs = self.run(source, data, **options)
        assert regs.r15 == vector
        words = struct.unpack("<2Q", self.memory.read(regs.rsp, 16))
        if error is None:
            return words[0], regs
        assert words[0] == error
        return words[1], regs

    def control(self, *, cr0=0, cr4=0):
        """Sets these bits too."""
        sregs = self.vcpu.sregs()
        sregs.cr0 |= cr0
        sregs.cr4 |= cr4
        self.vcpu.set_sregs(sregs)


LAYOUT = {"DATA": DATA, "ABSENT": ABSENT, "READ_ONLY": READ_ONLY, "MMIO": MMIO, "USER": USER}


@pytest.fixture
def guest(system):
    with GuestMemory(2 * MIB) as memory, system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        yield Guest(system, vm, vcpu, memory)


def has_feature(guest, leaf, register, bit):
    """Whether the guest's own CPUID has it, which is not on every host what KVM was told."""
    regs = guest.completes("cpuid", rax=leaf, rcx=0)
    return getattr(regs, register) >> bit & 1


def page_end(size):
    """An address from which `size` bytes cross into the next page."""
    return DATA + 0x1000 - size // 2


# --- int3, fwait


def test_int3_traps_with_rip_behind_it(guest):
    rip, regs = guest.faults(BP, "int3\nbehind: nop")
    assert rip == guest.labels["behind"]
    assert regs.rsp == STACK - 40


def test_int3_handler_returns_to_what_follows(guest):
    guest.memory.write(STUBS + 16 * BP, assemble("inc ebx\n iretq", bits=64))
    assert guest.completes("int3\n int3\n mov ecx, 5", rbx=0).rbx == 2


def test_int3_at_the_end_of_a_page_before_a_missing_one(guest):
    rip, _ = guest.faults(BP, "times 4095 nop\n int3", origin=ABSENT - 0x1000)
    assert rip == ABSENT


def test_fwait_is_skipped(guest):
    assert guest.completes("fwait\n fwait\n mov eax, 7").rax == 7


def test_fwait_after_a_task_switch_is_nm(guest):
    guest.control(cr0=8)
    rip, _ = guest.faults(NM, "nop\nhere: fwait")
    assert rip == guest.labels["here"]


def test_fwait_reports_an_unmasked_exception(guest):
    # The status word's exception is unmasked by the control word, so its summary bit 7 is set too.
    state = struct.pack("<HHHH", 0x37E, 0x81, 0, 0).ljust(24, b"\0") + struct.pack("<I", 0x1F80)
    rip, _ = guest.faults(MF, "fxrstor [DATA]\nhere: fwait", state.ljust(512, b"\0"))
    assert rip == guest.labels["here"]


# --- popcnt


@pytest.mark.parametrize("value", [0, 1, 0x8000000000000001, (1 << 64) - 1, 0xFFFF0000, 0x123456789ABCDEF0])
@pytest.mark.parametrize(("register", "bits"), [("cx", 16), ("ecx", 32), ("rcx", 64)])
def test_popcnt_of_a_register(guest, value, register, bits):
    target = {16: "ax", 32: "eax", 64: "rax"}[bits]
    before = 0x1122334455667788
    regs = guest.completes(f"popcnt {target}, {register}", rax=before, rcx=value, rflags=ARITHMETIC | 2)
    count = (value & ((1 << bits) - 1)).bit_count()
    assert regs.rax == (before & ~0xFFFF | count if bits == 16 else count)
    assert regs.rflags & ARITHMETIC == (0 if count else ZF)


def test_popcnt_of_memory(guest):
    regs = guest.completes("popcnt r9, [r8 + rcx*8 - 8]", bytes(8) + b"\xff\x01" * 4, r8=DATA, rcx=2)
    assert regs.r9 == 36


def test_popcnt_of_memory_on_two_pages(guest):
    regs = guest.completes("popcnt rax, [rbx]", b"\x03" * 8, at=page_end(8), rbx=page_end(8))
    assert regs.rax == 16


def test_popcnt_of_memory_relative_to_rip(guest):
    source = "popcnt eax, [rel value]\n hlt\nvalue: dd 0x70707"
    guest.run(source)
    assert guest.vcpu.regs().rax == 9


def test_popcnt_of_memory_behind_a_segment_base(guest):
    sregs = guest.vcpu.sregs()
    sregs.gs.base = DATA
    guest.vcpu.set_sregs(sregs)
    assert guest.completes("popcnt eax, [gs:rbx]", b"\0\0\0\0\x0f\0\0\0", rbx=4).rax == 4


def test_popcnt_of_a_missing_page_is_a_page_fault(guest):
    rip, _ = guest.faults(PF, "nop\nhere: popcnt rax, [ABSENT + 8]", error=0)
    assert rip == guest.labels["here"]
    assert guest.vcpu.sregs().cr2 == ABSENT + 8


def test_popcnt_that_reaches_a_missing_page_names_that_page(guest):
    guest.faults(PF, "popcnt rax, [rbx]", error=0, rbx=ABSENT - 4)
    assert guest.vcpu.sregs().cr2 == ABSENT


def test_popcnt_goes_on_after_the_page_fault_is_handled(guest):
    handler = f"""
        mov     rbx, {DATA}
        add     rsp, 8
        iretq
    """
    guest.memory.write(0xE000, assemble(handler, bits=64))
    guest.memory.write(IDT + 16 * PF, struct.pack("<HHBBHII", 0xE000, 8, 0, 0x8E, 0, 0, 0))
    assert guest.completes("popcnt rax, [rbx]", b"\x1f", rbx=ABSENT).rax == 5


def test_popcnt_of_a_non_canonical_address_is_gp(guest):
    guest.faults(GP, "popcnt rax, [rbx]", error=0, rbx=1 << 60)


def test_popcnt_of_mmio_is_not_finished(guest):
    code = assemble("popcnt eax, [rbx]\n hlt", bits=64)
    guest.memory.write(CODE, code)
    regs = guest.vcpu.regs()
    regs.rip, regs.rbx, regs.rflags = CODE, MMIO, 2
    guest.vcpu.set_regs(regs)
    reason = guest.vcpu.run()
    if reason == KVM_EXIT_MMIO:
        pytest.skip("this KVM emulates popcnt")
    assert reason == KVM_EXIT_INTERNAL_ERROR
    assert not finish(guest.vcpu, guest.memory)
    assert guest.vcpu.regs().rip == CODE


# --- stac, clac


def test_stac_and_clac(guest):
    if not has_feature(guest, 7, "rbx", 20):
        pytest.skip("this processor has no SMAP")
    source = "stac\n pushfq\n pop rax\n clac\n pushfq\n pop rbx"
    regs = guest.completes(source)
    assert regs.rax & AC
    assert not regs.rbx & AC


# --- cmpxchg8b, cmpxchg16b


@pytest.mark.parametrize(("name", "half"), [("cmpxchg8b", 32), ("cmpxchg16b", 64)])
@pytest.mark.parametrize("lock", ["", "lock "])
def test_cmpxchg_exchanges_what_is_equal(guest, name, half, lock):
    old, new = 0x1122334455667788 & (1 << half) - 1, 0x99AABBCCDDEEFF00 & (1 << half) - 1
    data = (old << half | 5).to_bytes(half // 4, "little")
    regs = guest.completes(f"{lock}{name} [DATA]", data, rdx=old, rax=5, rcx=new, rbx=6, rflags=0x2 | 1)
    assert guest.memory.read(DATA, half // 4) == (new << half | 6).to_bytes(half // 4, "little")
    assert regs.rflags & ARITHMETIC == ZF | 1


@pytest.mark.parametrize(("name", "half"), [("cmpxchg8b", 32), ("cmpxchg16b", 64)])
def test_cmpxchg_loads_what_differs(guest, name, half):
    high, low = 0x1122334455667788 & (1 << half) - 1, 0x80000001
    data = (high << half | low).to_bytes(half // 4, "little")
    regs = guest.completes(f"{name} [DATA]", data, rdx=high, rax=5, rcx=1, rbx=6, rflags=2 | ZF)
    assert guest.memory.read(DATA, half // 4) == data
    assert (regs.rdx, regs.rax) == (high, low)
    assert not regs.rflags & ZF


def test_cmpxchg16b_wants_alignment(guest):
    guest.faults(GP, "cmpxchg16b [DATA + 8]", error=0)


@pytest.mark.parametrize("equal", [True, False])
def test_cmpxchg16b_needs_a_writable_page_even_to_fail(guest, equal):
    guest.faults(PF, "cmpxchg16b [READ_ONLY]", error=P | W, rax=0 if equal else 1, rdx=0)
    assert guest.vcpu.sregs().cr2 == READ_ONLY


def test_cmpxchg16b_of_a_missing_page(guest):
    guest.faults(PF, "cmpxchg16b [ABSENT]", error=W)


# --- MXCSR and SSE


def test_mxcsr_is_loaded_and_stored(guest):
    source = "ldmxcsr [DATA]\n stmxcsr [DATA + 4]"
    guest.completes(source, struct.pack("<I", 0x5FA1))
    assert guest.memory.read(DATA + 4, 4) == struct.pack("<I", 0x5FA1)


def test_mxcsr_is_its_initial_value_at_first(guest):
    guest.completes("stmxcsr [DATA]")
    assert guest.memory.read(DATA, 4) == struct.pack("<I", 0x1F80)


def test_mxcsr_with_reserved_bits_is_gp(guest):
    guest.faults(GP, "ldmxcsr [DATA]", struct.pack("<I", 0x10001F80), error=0)


def test_mxcsr_after_a_task_switch_is_nm(guest):
    guest.control(cr0=8)
    guest.faults(NM, "stmxcsr [DATA]")


def test_stmxcsr_to_a_read_only_page(guest):
    guest.faults(PF, "stmxcsr [READ_ONLY + 4]", error=P | W)
    assert guest.vcpu.sregs().cr2 == READ_ONLY + 4


A = bytes(range(1, 17))
B = bytes(range(0x81, 0x91))
# (opcode bytes up to ModRM, bytes moved, aligned); the load form has xmm1 ← [rbx], the store form [rbx] ← xmm1.
MOVES = {
    "movups": ("0f10", "0f11", 16, False),
    "movupd": ("660f10", "660f11", 16, False),
    "movss": ("f30f10", "f30f11", 4, False),
    "movsd": ("f20f10", "f20f11", 8, False),
    "movaps": ("0f28", "0f29", 16, True),
    "movapd": ("660f28", "660f29", 16, True),
    "movdqa": ("660f6f", "660f7f", 16, True),
    "movdqu": ("f30f6f", "f30f7f", 16, False),
    "movq": ("f30f7e", "660fd6", 8, False),
    "movd": ("660f6e", "660f7e", 4, False),
    "movq r/m": ("66480f6e", "66480f7e", 8, False),
}


def emit(opcode, modrm):
    return "db " + ", ".join(f"0x{byte:02x}" for byte in bytes.fromhex(opcode) + bytes([modrm]))


def xmm(guest, number):
    return guest.memory.read(DATA + 0x100 + 16 * number, 16)


LOAD_BOTH = "movups xmm0, [DATA]\n movups xmm1, [DATA + 16]\n"
STORE_BOTH = "\n movups [DATA + 0x100], xmm0\n movups [DATA + 0x110], xmm1"


@pytest.mark.parametrize("name", MOVES)
def test_sse_move_from_memory_clears_the_rest(guest, name):
    load, _, size, _ = MOVES[name]
    guest.completes(LOAD_BOTH + emit(load, 0x0B) + STORE_BOTH, A + B, rbx=DATA)
    assert xmm(guest, 1) == A[:size].ljust(16, b"\0")
    assert xmm(guest, 0) == A


@pytest.mark.parametrize("name", MOVES)
def test_sse_move_to_memory(guest, name):
    _, store, size, _ = MOVES[name]
    guest.completes(LOAD_BOTH + emit(store, 0x0B), A + B, rbx=DATA)
    assert guest.memory.read(DATA, 16) == B[:size] + A[size:]


@pytest.mark.parametrize("name", [name for name, row in MOVES.items() if row[3]])
def test_aligned_sse_move_wants_alignment(guest, name):
    load, store, _, _ = MOVES[name]
    guest.faults(GP, emit(load, 0x0B), error=0, rbx=DATA + 8)
    guest.faults(GP, emit(store, 0x0B), error=0, rbx=DATA + 8)


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        ("0f10", A), ("0f28", A), ("660f6f", A), ("f30f6f", A), ("f30f7e", A[:8] + bytes(8)),
        ("f30f10", A[:4] + B[4:]), ("f20f10", A[:8] + B[8:]),
    ],
)  # fmt: skip
def test_sse_move_between_registers(guest, opcode, expected):
    guest.completes(LOAD_BOTH + emit(opcode, 0xC8) + STORE_BOTH, A + B)
    assert xmm(guest, 1) == expected


@pytest.mark.parametrize(("opcode", "size"), [("660f6e", 4), ("66480f6e", 8)])
def test_general_register_to_xmm(guest, opcode, size):
    guest.completes(LOAD_BOTH + emit(opcode, 0xCA) + STORE_BOTH, A + B, rdx=0x8877665544332211)
    assert xmm(guest, 1) == bytes.fromhex("1122334455667788")[:size].ljust(16, b"\0")


@pytest.mark.parametrize(("opcode", "size"), [("660f7e", 4), ("66480f7e", 8)])
def test_xmm_to_general_register(guest, opcode, size):
    regs = guest.completes(LOAD_BOTH + emit(opcode, 0xCA), A + B, rdx=(1 << 64) - 1)
    assert regs.rdx == int.from_bytes(B[:size], "little")


@pytest.mark.parametrize("opcode", ["0f57", "660f57", "660fef"])
def test_exclusive_or(guest, opcode):
    source = LOAD_BOTH + emit(opcode, 0xC8) + "\n" + emit(opcode, 0xC0) + STORE_BOTH
    guest.completes(source, A + B)
    assert xmm(guest, 1) == bytes(a ^ b for a, b in zip(A, B, strict=True))
    assert xmm(guest, 0) == bytes(16)


@pytest.mark.parametrize("opcode", ["0f2b", "660f2b", "660fe7"])
def test_non_temporal_store(guest, opcode):
    guest.completes(LOAD_BOTH + emit(opcode, 0x0B), A + B, rbx=DATA + 32)
    assert guest.memory.read(DATA + 32, 16) == B


def test_xmm8_to_xmm15_are_their_own(guest):
    guest.completes(
        LOAD_BOTH + "db 0x44, 0x0f, 0x28, 0xf9\n movups [DATA + 0x100], xmm15" + "\n xorps xmm15, xmm15", A + B
    )
    assert xmm(guest, 0) == B


# --- x87


def test_x87_computes(guest):
    # fninit; fldcw; fld1; fild dword; fdivp: 1/3, in double precision, stored as it is; fistp of 3.
    guest.control(cr0=2)
    source = "\n".join(
        [
            "db 0xdb, 0xe3",
            "db 0xd9, 0x2b",
            "db 0xd9, 0xe8",
            "db 0xdb, 0x43, 0x04",
            "db 0xde, 0xf9",
            "db 0xdd, 0x53, 0x08",
            "db 0xda, 0x4b, 0x04",
            "db 0xdb, 0x5b, 0x10",
            "db 0xd9, 0x7b, 0x14",
            "db 0xdd, 0x7b, 0x16",
        ]
    )
    guest.completes(source, struct.pack("<HHi", 0x27F, 0, 3), rbx=DATA)
    third, one, control, status = struct.unpack("<diHH", guest.memory.read(DATA + 8, 16))
    assert third == 1 / 3
    assert (one, control) == (1, 0x27F)
    assert status & 0x3F == 0x20  # Nothing but a result that was rounded.


def test_x87_after_a_task_switch_is_nm(guest):
    guest.control(cr0=8)
    guest.faults(NM, "db 0xd9, 0xe8")


def test_an_x87_load_of_a_missing_page_is_a_page_fault(guest):
    guest.faults(PF, "db 0xd9, 0x03", error=0, rbx=ABSENT)
    assert guest.vcpu.sregs().cr2 == ABSENT


# --- XSAVE


@pytest.fixture
def xsave_guest(guest):
    """With XSAVE switched on for x87, SSE and, where it is there, AVX."""
    if not has_feature(guest, 1, "rcx", 26):
        pytest.skip("this processor has no XSAVE")
    guest.avx = has_feature(guest, 1, "rcx", 28)
    guest.control(cr4=1 << 18)
    guest.completes("xsetbv", rcx=0, rax=7 if guest.avx else 3, rdx=0)
    return guest


def xsave_area(present, *, xmm1=bytes(16), mxcsr=0x1F80, fcw=0x37F, ymm1=bytes(16)):
    area = bytearray(0x340)
    struct.pack_into("<H", area, 0, fcw)
    struct.pack_into("<I", area, 24, mxcsr)
    area[176:192] = xmm1
    struct.pack_into("<Q", area, 512, present)
    area[576 + 16 : 576 + 32] = ymm1
    return bytes(area)


AREA = DATA + 0x400
LOAD_XMM1 = "movups xmm1, [DATA]\n"


def test_xgetbv_reads_xcr0(xsave_guest):
    regs = xsave_guest.completes("xgetbv", rcx=0, rdx=5, rax=0)
    assert regs.rdx << 32 | regs.rax == (7 if xsave_guest.avx else 3)


def test_xsave_stores_what_is_asked_for(xsave_guest):
    memory = xsave_guest.memory
    memory.write(AREA, b"\xee" * 512 + bytes(64))
    xsave_guest.completes(LOAD_XMM1 + f"xsave [{AREA}]", B, rax=2, rdx=0)
    assert memory.read(AREA, 24) == b"\xee" * 24
    assert memory.read(AREA + 24, 4) == struct.pack("<I", 0x1F80)
    assert memory.read(AREA + 160 + 16, 16) == B
    assert memory.read(AREA + 512, 8) == struct.pack("<Q", 2)


def test_xsave_keeps_the_header_bits_of_what_is_not_asked_for(xsave_guest):
    xsave_guest.memory.write(AREA, xsave_area(4))
    xsave_guest.completes(LOAD_XMM1 + f"xsave [{AREA}]", B, rax=2, rdx=0)
    assert xsave_guest.memory.read(AREA + 512, 8) == struct.pack("<Q", 6)


def test_xrstor_loads_what_is_there(xsave_guest):
    xsave_guest.memory.write(AREA, xsave_area(3, xmm1=A, mxcsr=0x1FA0, fcw=0x27F))
    source = f"xrstor [{AREA}]\n movups [DATA], xmm1\n stmxcsr [DATA + 16]\n fnstcw [DATA + 20]"
    xsave_guest.completes(source, B, rax=3, rdx=0)
    assert xsave_guest.memory.read(DATA, 22) == A + struct.pack("<IH", 0x1FA0, 0x27F)


def test_xrstor_gives_the_initial_state_to_what_is_not_there(xsave_guest):
    xsave_guest.memory.write(AREA, xsave_area(0, xmm1=A))
    source = f"{LOAD_XMM1} ldmxcsr [DATA + 16]\n xrstor [{AREA}]\n movups [DATA], xmm1\n stmxcsr [DATA + 16]"
    xsave_guest.completes(source, B + struct.pack("<I", 0x5F80), rax=3, rdx=0)
    assert xsave_guest.memory.read(DATA, 20) == bytes(16) + struct.pack("<I", 0x1F80)


def test_xrstor_leaves_what_is_not_asked_for(xsave_guest):
    xsave_guest.memory.write(AREA, xsave_area(3, xmm1=A))
    xsave_guest.completes(f"{LOAD_XMM1} xrstor [{AREA}]\n movups [DATA + 16], xmm1", B, rax=1, rdx=0)
    assert xsave_guest.memory.read(DATA + 16, 16) == B


def test_avx_state_goes_through_xrstor_and_xsave(xsave_guest):
    if not xsave_guest.avx:
        pytest.skip("this processor has no AVX")
    xsave_guest.memory.write(AREA, xsave_area(7, xmm1=A, ymm1=B))
    other = DATA + 0x800
    xsave_guest.completes(f"xrstor [{AREA}]\n xsave [{other}]", rax=7, rdx=0)
    assert xsave_guest.memory.read(other + 176, 16) == A
    assert xsave_guest.memory.read(other + 576 + 16, 16) == B


@pytest.mark.parametrize("name", ["xsave", "xrstor"])
def test_xsave_areas_are_aligned(xsave_guest, name):
    xsave_guest.faults(GP, f"{name} [{AREA + 32}]", error=0, rax=3, rdx=0)


def test_xrstor_of_a_component_that_is_not_on_is_gp(xsave_guest):
    xsave_guest.memory.write(AREA, xsave_area(1 << 62))
    xsave_guest.faults(GP, f"xrstor [{AREA}]", error=0, rax=3, rdx=0)


def test_xrstor_of_reserved_mxcsr_bits_is_gp(xsave_guest):
    xsave_guest.memory.write(AREA, xsave_area(3, mxcsr=1 << 31))
    xsave_guest.faults(GP, f"xrstor [{AREA}]", error=0, rax=3, rdx=0)


def test_xsave_to_a_missing_page(xsave_guest):
    xsave_guest.faults(PF, "xsave [ABSENT]", rax=3, rdx=0)
    assert xsave_guest.vcpu.sregs().cr2 & ~0xFFF == ABSENT


def test_xsave_after_a_task_switch_is_nm(xsave_guest):
    xsave_guest.control(cr0=8)
    xsave_guest.faults(NM, f"xsave [{AREA}]")


@pytest.mark.parametrize("name", ["xgetbv", f"xsave [{AREA}]", f"xrstor [{AREA}]"])
def test_without_osxsave_is_ud(guest, name):
    guest.faults(UD, name, rcx=0)


# --- around the instruction


def test_a_single_step_traps_behind_the_instruction(guest):
    rip, _ = guest.faults(DB, "push 0x102\n popfq\n popcnt eax, ecx\nbehind: nop")
    assert rip == guest.labels["behind"]
    assert guest.vcpu.debug_regs().dr6 & 1 << 14


def test_finish_refuses_an_unknown_instruction(guest):
    # verr of MMIO: no processor runs that without help, and it is not known here.
    guest.memory.write(CODE, assemble("db 0x66, 0x0f, 0x38, 0x1c, 0x03", bits=64))
    regs = guest.vcpu.regs()
    regs.rip, regs.rbx, regs.rflags = CODE, MMIO, 2
    guest.vcpu.set_regs(regs)
    reason = guest.vcpu.run()
    assert reason == KVM_EXIT_INTERNAL_ERROR
    assert guest.vcpu.exit.internal_error.suberror == KVM_INTERNAL_ERROR_EMULATION
    assert not finish(guest.vcpu, guest.memory)
    text = describe_crash(guest.vcpu, guest.memory)
    assert "pabsb xmm0,[rbx]" in text
    assert f"rbx {MMIO:016x}" in text


def test_a_triple_fault_is_described(guest):
    guest.memory.write(CODE, assemble("mov rsp, 0x123\n lidt [rbx]\n ud2", bits=64))
    guest.memory.write(DATA, bytes(10))
    regs = guest.vcpu.regs()
    regs.rip, regs.rbx, regs.rflags = CODE, DATA, 2
    guest.vcpu.set_regs(regs)
    assert guest.vcpu.run() == KVM_EXIT_SHUTDOWN
    text = describe_crash(guest.vcpu, guest.memory)
    assert "ring 0, 64-bit code" in text
    assert "ud2" in text


def test_without_a_disassembler_the_bytes_are_told(guest, monkeypatch):
    monkeypatch.setitem(sys.modules, "iced_x86", None)
    guest.completes("mov eax, 1")
    guest.vcpu.set_regs(registers_at(guest, CODE))
    text = describe_crash(guest.vcpu, guest.memory)
    assert "bytes b8 01 00 00 00" in text
    assert "kvmpy[debug]" in text


@pytest.mark.parametrize("rip", [ABSENT, MMIO, 1 << 62, (1 << 64) - 1])
def test_a_crash_where_there_is_no_code_is_described(guest, rip):
    guest.vcpu.set_regs(registers_at(guest, rip))
    assert "where no memory is mapped" in describe_crash(guest.vcpu, guest.memory)


def registers_at(guest, rip):
    regs = guest.vcpu.regs()
    regs.rip = rip
    return regs
