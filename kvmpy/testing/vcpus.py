"""For tests of `kvmpy.kvm` itself: a vCPU with a few instructions to run and no machine around it."""

from __future__ import annotations

import errno

from kvmpy.errors import KvmError
from kvmpy.testing.asm import assemble
from kvmpy.testing.guests import LOAD_ADDRESS
from kvmpy.x86.cpustate import RFLAGS_RESERVED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from kvmpy.kvm import Vcpu
    from kvmpy.memory import GuestMemory

STACK_TOP = 0x8000

# What KVM says to an ioctl, a capability or an attribute that it does not have.
NOT_THERE = (errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENXIO)


def load(memory: GuestMemory, vcpu: Vcpu, source: str) -> None:
    """Puts real-mode code at `LOAD_ADDRESS`, and the vCPU there: segments at 0, a stack, interrupts off."""
    memory.write(LOAD_ADDRESS, assemble(source, bits=16, origin=LOAD_ADDRESS))
    sregs = vcpu.sregs()
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
        segment.base = segment.selector = 0
    vcpu.set_sregs(sregs)
    regs = vcpu.regs()
    regs.rip, regs.rsp, regs.rflags = LOAD_ADDRESS, STACK_TOP, RFLAGS_RESERVED
    vcpu.set_regs(regs)


def refused(call: Callable[..., object], *arguments: object, numbers: Collection[int] = NOT_THERE) -> None:
    """Fails unless the call ends as it has to where KVM lacks it: in a `KvmError` that names the ioctl."""
    refusal: KvmError | None = None
    try:
        call(*arguments)
    except KvmError as error:
        refusal = error
    assert refusal is not None, f"{call} was not refused"
    assert refusal.errno in numbers
    assert refusal.call.startswith("KVM_")
