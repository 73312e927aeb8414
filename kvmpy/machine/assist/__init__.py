"""What KVM's emulator leaves undone, finished by us.

On some hosts KVM runs a guest's kernel (ring 0) instruction by instruction in software, and gives up at those that
its emulator does not know: KVM_EXIT_INTERNAL_ERROR with KVM_INTERNAL_ERROR_EMULATION.  `finish` does the instruction
in the emulator's place.  On a host whose processor runs ring 0 nothing here is ever called.
"""

from __future__ import annotations

from kvmpy.errors import GuestMemoryError
from kvmpy.kvm.exits import KVM_INTERNAL_ERROR_EMULATION
from kvmpy.machine.assist.cpu import DB, DR6_BS, RFLAGS_RF, RFLAGS_TF, Cpu, Fault, UnfinishedError
from kvmpy.machine.assist.decode import Instruction, TruncatedError, decode
from kvmpy.machine.assist.instructions import INSTRUCTIONS, Trap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vcpu
    from kvmpy.memory import GuestMemory

__all__ = ["finish"]

_MAX_INSTRUCTION = 15


def finish(vcpu: Vcpu, memory: GuestMemory) -> bool:
    """Does the instruction at which KVM's emulator gave up; whether the vCPU can run on.

    To be called after a KVM_EXIT_INTERNAL_ERROR.  The instruction is done, or the guest takes the exception
    that it ends with.  False, with nothing changed, for another kind of internal error, an instruction that is
    not known here, and an operand that is not in RAM.
    """
    if vcpu.exit.internal_error.suberror != KVM_INTERNAL_ERROR_EMULATION:
        return False
    cpu = Cpu(vcpu, memory)
    insn = _instruction(cpu)
    if insn is None:
        return False
    do = INSTRUCTIONS.get(insn.key)
    if do is None:
        return False
    cpu.insn = insn
    single_step = cpu.regs.rflags & RFLAGS_TF
    fault: Fault | None = None
    try:
        do(cpu)
    except Fault as raised:
        fault = raised
    except (GuestMemoryError, UnfinishedError):
        return False
    if fault is None or isinstance(fault, Trap):
        cpu.regs.rip = _next(cpu)
        cpu.regs.rflags &= ~RFLAGS_RF
        if fault is None and single_step:
            fault = Trap(DB)
            debug = vcpu.debug_regs()
            debug.dr6 |= DR6_BS
            vcpu.set_debug_regs(debug)
    cpu.commit()
    if fault is None:
        cpu.end_shadow()
    else:
        cpu.inject(fault)
    return True


def _instruction(cpu: Cpu) -> Instruction | None:
    # KVM's copy may end early, or be missing: then guest memory has it.
    for code in (cpu.vcpu.exit.internal_error.instruction, cpu.fetch(_MAX_INSTRUCTION)):
        try:
            return decode(code, cpu.bits)
        except TruncatedError:
            continue
    return None


def _next(cpu: Cpu) -> int:
    mask = (1 << 64) - 1 if cpu.bits == 64 else (1 << 32) - 1
    return cpu.regs.rip + cpu.insn.length & mask
