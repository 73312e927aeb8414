"""What the finished instructions do, on a `Cpu` whose state is plain objects and whose memory is guest memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import GuestMemoryError
from kvmpy.machine.assist.cpu import CR0_WP, CR4_SMAP, PF, RFLAGS_AC, RFLAGS_ZF, Cpu, Fault, UnfinishedError
from kvmpy.machine.assist.decode import decode
from kvmpy.machine.assist.instructions import INSTRUCTIONS
from kvmpy.memory import GuestMemory

TABLES = 0x1000
DATA = 0x10000
P, W, U = 1, 2, 4
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)))


def vcpu_with(registers, *, cpl=0, rights=P | W, cr0=0x80000033, cr4=0x620, efer=0x500):
    """The state of a vCPU in 64-bit mode, for `Cpu` to read."""
    memory = GuestMemory(0x40000)
    for level in range(3):
        memory.write(TABLES + level * 0x1000, (TABLES + (level + 1) * 0x1000 | P | W | U).to_bytes(8, "little"))
    for page in range(0x40):
        entry = page << 12 | (rights if page >= DATA >> 12 else P | W)
        memory.write(TABLES + 0x3000 + page * 8, entry.to_bytes(8, "little"))
    regs = SimpleNamespace(**{name: registers.get(name, 0) for name in REGISTERS}, rip=0x8000, rflags=2)
    segment = SimpleNamespace(base=0, dpl=cpl, l=1, db=0)
    names = ("cs", "ds", "es", "fs", "gs", "ss")
    sregs = SimpleNamespace(cr0=cr0, cr3=TABLES, cr4=cr4, efer=efer, **dict.fromkeys(names, segment))
    area = bytearray(4096)
    area[24:32] = bytes.fromhex("801f0000ffff0200")
    return SimpleNamespace(regs=lambda: regs, sregs=lambda: sregs, xsave=lambda: bytes(area)), memory


def execute(code, registers=None, data=b"", **options):
    """Runs the instruction `code` with `data` in memory; the `Cpu`."""
    vcpu, memory = vcpu_with(registers or {}, **options)
    memory.write(DATA, data)
    cpu = Cpu(vcpu, memory)
    cpu.insn = decode(bytes.fromhex(code), 64)
    INSTRUCTIONS[cpu.insn.key](cpu)
    return cpu


u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)


@given(u64)
def test_popcnt_counts_ones(value):
    cpu = execute("f3480fb8c1", {"rcx": value})
    assert cpu.regs.rax == bin(value).count("1")
    assert bool(cpu.regs.rflags & RFLAGS_ZF) == (value == 0)


@given(u64, u64)
def test_popcnt_of_16_bits_keeps_the_rest(value, before):
    cpu = execute("66f30fb8c1", {"rcx": value, "rax": before})
    assert cpu.regs.rax == before & ~0xFFFF | bin(value & 0xFFFF).count("1")


@given(u64, u64, u64, u64, u64, u64, st.booleans())
def test_cmpxchg16b(rax, rdx, rbx, rcx, low, high, equal):
    if equal:
        low, high = rax, rdx
    data = low.to_bytes(8, "little") + high.to_bytes(8, "little")
    cpu = execute("480fc70e", {"rax": rax, "rdx": rdx, "rbx": rbx, "rcx": rcx, "rsi": DATA}, data)
    stored = cpu.memory.read(DATA, 16)
    if (low, high) == (rax, rdx):
        assert stored == rbx.to_bytes(8, "little") + rcx.to_bytes(8, "little")
        assert cpu.regs.rflags & RFLAGS_ZF
    else:
        assert stored == data
        assert (cpu.regs.rax, cpu.regs.rdx) == (low, high)
        assert not cpu.regs.rflags & RFLAGS_ZF


@given(u32, u32, u32, u32, u64)
def test_cmpxchg8b_uses_the_low_halves(eax, edx, ebx, ecx, dirt):
    upper = dirt & ~0xFFFFFFFF
    data = eax.to_bytes(4, "little") + edx.to_bytes(4, "little")
    registers = {"rax": upper | eax, "rdx": upper | edx, "rbx": upper | ebx, "rcx": upper | ecx, "rsi": DATA}
    cpu = execute("0fc70e", registers, data)
    assert cpu.memory.read(DATA, 8) == ebx.to_bytes(4, "little") + ecx.to_bytes(4, "little")
    assert cpu.regs.rax == upper | eax


STORE = "0f111e"  # movups [rsi], xmm3
LOAD = "0f101e"


@pytest.mark.parametrize(
    ("code", "cpl", "rights", "cr0", "error"),
    [
        (LOAD, 0, P, 0, None),
        (LOAD, 0, P | U, 0, None),
        (LOAD, 3, P, 0, 5),
        (LOAD, 3, P | U, 0, None),
        (STORE, 0, P, 0, None),
        (STORE, 0, P, CR0_WP, 3),
        (STORE, 0, P | W, CR0_WP, None),
        (STORE, 3, P | U, 0, 7),
        (STORE, 3, P | U | W, CR0_WP, None),
        (LOAD, 0, 0, 0, 0),
        (LOAD, 3, 0, 0, 4),
        (STORE, 3, 0, 0, 6),
    ],
)
def test_page_rights(code, cpl, rights, cr0, error):
    options = {"cpl": cpl, "rights": rights, "cr0": 0x80000033 | cr0}
    if error is None:
        execute(code, {"rsi": DATA + 8}, **options)
        return
    with pytest.raises(Fault) as raised:
        execute(code, {"rsi": DATA + 8}, **options)
    assert (raised.value.vector, raised.value.error_code, raised.value.address) == (PF, error, DATA + 8)


def test_smap_keeps_the_kernel_from_user_pages():
    with pytest.raises(Fault) as raised:
        execute(LOAD, {"rsi": DATA}, rights=P | U | W, cr4=0x620 | CR4_SMAP)
    assert (raised.value.vector, raised.value.error_code) == (PF, P)


def test_smap_lets_the_kernel_in_after_stac():
    vcpu, memory = vcpu_with({"rsi": DATA}, rights=P | U | W, cr4=0x620 | CR4_SMAP)
    cpu = Cpu(vcpu, memory)
    for code in ("0f01cb", LOAD):
        cpu.insn = decode(bytes.fromhex(code), 64)
        INSTRUCTIONS[cpu.insn.key](cpu)
    assert cpu.regs.rflags & RFLAGS_AC


def test_a_store_that_faults_on_its_second_page_writes_nothing():
    vcpu, memory = vcpu_with({"rsi": DATA + 0xFF8})
    memory.write(TABLES + 0x3000 + (DATA >> 12) * 8 + 8, bytes(8))
    memory.write(DATA + 0xFF8, b"\xee" * 8)
    cpu = Cpu(vcpu, memory)
    cpu.insn = decode(bytes.fromhex(STORE), 64)
    with pytest.raises(Fault) as raised:
        INSTRUCTIONS[cpu.insn.key](cpu)
    assert raised.value.address == DATA + 0x1000
    assert memory.read(DATA + 0xFF8, 8) == b"\xee" * 8


def test_a_store_that_leaves_ram_writes_nothing():
    vcpu, memory = vcpu_with({"rsi": DATA + 0xFF8})
    memory.write(TABLES + 0x3000 + (DATA >> 12) * 8 + 8, (0xD0000003).to_bytes(8, "little"))
    memory.write(DATA + 0xFF8, b"\xee" * 8)
    cpu = Cpu(vcpu, memory)
    cpu.insn = decode(bytes.fromhex(STORE), 64)
    with pytest.raises(GuestMemoryError):
        INSTRUCTIONS[cpu.insn.key](cpu)
    assert memory.read(DATA + 0xFF8, 8) == b"\xee" * 8


@given(st.binary(min_size=15, max_size=15), u64)
def test_no_instruction_of_a_hostile_guest_raises_anything_else(code, address):
    vcpu, memory = vcpu_with(dict.fromkeys(REGISTERS, address))
    vcpu.xcrs = lambda: bytes(400)
    cpu = Cpu(vcpu, memory)
    for opcode in sorted({key[1] for key in INSTRUCTIONS}):
        prefix = opcode.to_bytes(2 if opcode > 0xFF else 1, "big")
        for mandatory in (b"", b"\x66", b"\xf3", b"\xf2"):
            insn = decode(mandatory + prefix + code, 64)
            if insn is None or insn.key not in INSTRUCTIONS:
                continue
            cpu.insn = insn
            try:
                INSTRUCTIONS[insn.key](cpu)
            except (Fault, GuestMemoryError, UnfinishedError):
                continue
    memory.close()
