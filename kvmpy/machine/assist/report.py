"""What to tell of a guest that crashed: its registers, and the instruction it stopped at."""

from __future__ import annotations

from kvmpy.errors import KvmError
from kvmpy.kvm.exits import KVM_EXIT_INTERNAL_ERROR
from kvmpy.machine.assist.cpu import Cpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vcpu
    from kvmpy.kvm.structs import Regs, Segment, Sregs
    from kvmpy.memory import GuestMemory

_FLAGS = ("CF", "", "PF", "", "AF", "", "ZF", "SF", "TF", "IF", "DF", "OF", "", "", "NT", "", "RF", "VM", "AC")
_EXCEPTIONS = (
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP", "#PF", "", "#MF",
    "#AC", "#MC", "#XM", "#VE", "#CP",
)  # fmt: skip
_MAX_INSTRUCTION = 15


def describe_crash(vcpu: Vcpu, memory: GuestMemory) -> str:
    """Some lines on a vCPU's state after an exit that ends the machine: for people, never empty, never raises.

    The instruction is disassembled when iced_x86 (the extra `debug`) is installed.
    """
    try:
        cpu = Cpu(vcpu, memory)
        lines = [*_instruction(cpu), *_events(vcpu), *_general(cpu.regs), *_system(cpu.sregs)]
    except KvmError as error:
        lines = [f"the vCPU's state cannot be read: {error}"]
    return "\n".join(f"vcpu {vcpu.id}: {line}" if index == 0 else f"  {line}" for index, line in enumerate(lines))


def _instruction(cpu: Cpu) -> list[str]:
    where = f"at rip {cpu.regs.rip:#x}, ring {cpu.cpl}, {cpu.bits}-bit code"
    code = cpu.fetch(_MAX_INSTRUCTION)
    if cpu.vcpu.exit.reason == KVM_EXIT_INTERNAL_ERROR:
        code = cpu.vcpu.exit.internal_error.instruction or code
    if not code:
        return [f"{where}, where no memory is mapped"]
    decoded = disassemble(code, cpu.bits, cpu.regs.rip)
    if decoded is None:
        return [where, f"bytes {code.hex(' ')} (install kvmpy[debug] to see the instruction)"]
    length, text = decoded
    return [where, f"bytes {code[:length].hex(' ')}: {text}"]


def disassemble(code: bytes, bits: int, address: int) -> tuple[int, str] | None:
    """(length, text) of the instruction that `code` starts with, at `address`; None without iced_x86."""
    try:
        from iced_x86 import Decoder, Formatter, FormatterSyntax
    except ImportError:
        return None
    instruction = Decoder(bits, code, ip=address).decode()
    if instruction.is_invalid:
        return len(code), "no valid instruction"
    return instruction.len, Formatter(FormatterSyntax.NASM).format(instruction)


def _events(vcpu: Vcpu) -> list[str]:
    exception = vcpu.events().exception
    # A pending one is KVM's own: a #UD that it queues beside an internal error.
    if not exception.injected:
        return []
    name = _EXCEPTIONS[exception.nr] if exception.nr < len(_EXCEPTIONS) else ""
    error = f", error code {exception.error_code:#x}" if exception.has_error_code else ""
    return [f"while exception {exception.nr} {name}".rstrip() + f"{error} was being delivered"]


def _general(regs: Regs) -> list[str]:
    rows = (
        ("rax", "rbx", "rcx", "rdx"),
        ("rsi", "rdi", "rbp", "rsp"),
        ("r8", "r9", "r10", "r11"),
        ("r12", "r13", "r14", "r15"),
    )
    lines = ["  ".join(f"{name:>3} {getattr(regs, name):016x}" for name in row) for row in rows]
    flags = " ".join(name for bit, name in enumerate(_FLAGS) if name and regs.rflags >> bit & 1)
    return [*lines, f"rip {regs.rip:016x}  rflags {regs.rflags:08x} {flags}".rstrip()]


def _system(sregs: Sregs) -> list[str]:
    control = f"cr0 {sregs.cr0:08x}  cr2 {sregs.cr2:016x}  cr3 {sregs.cr3:x}  cr4 {sregs.cr4:x}  efer {sregs.efer:x}"
    names = ("cs", "ss", "ds", "es", "fs", "gs")
    segments = "  ".join(f"{name} {_segment(getattr(sregs, name))}" for name in names)
    tables = f"gdt {sregs.gdt.base:x}+{sregs.gdt.limit:x}  idt {sregs.idt.base:x}+{sregs.idt.limit:x}"
    return [control, segments, f"{tables}  tr {_segment(sregs.tr)}"]


def _segment(segment: Segment) -> str:
    return f"{segment.selector:04x}" + (f"@{segment.base:x}" if segment.base else "")
