"""What the structs that a vCPU's state travels in hold: for readers and type checkers only.

At run time these are cffi structs with these members, named as the kernel names them.  All are unsigned integers.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableSequence


class Regs:
    """`struct kvm_regs`: the general registers."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int


REGISTER_NAMES = tuple(Regs.__annotations__)
"""The general registers' names, in the order of the struct."""


class Segment:
    """`struct kvm_segment`: a segment register with its hidden part; `g` set: `limit` is still in bytes."""

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741  (its name in the manuals)
    g: int
    avl: int
    unusable: int


class DescriptorTable:
    """`struct kvm_dtable`: GDTR or IDTR."""

    base: int
    limit: int


class Sregs:
    """`struct kvm_sregs`: segments, descriptor tables and control registers."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: MutableSequence[int]


class Fpu:
    """`struct kvm_fpu`: x87 and SSE, without the rest of XSAVE."""

    fpr: MutableSequence[MutableSequence[int]]
    fcw: int
    fsw: int
    ftwx: int
    last_opcode: int
    last_ip: int
    last_dp: int
    xmm: MutableSequence[MutableSequence[int]]
    mxcsr: int


class ExceptionEvent:
    """The exception that is being delivered."""

    injected: int
    nr: int
    has_error_code: int
    pending: int
    error_code: int


class InterruptEvent:
    """The interrupt that is being delivered, and the shadow of `sti` and `mov ss`."""

    injected: int
    nr: int
    soft: int
    shadow: int


class NmiEvent:
    """The non-maskable interrupt."""

    injected: int
    pending: int
    masked: int


class VcpuEvents:
    """`struct kvm_vcpu_events` (api.rst 4.31): `flags` says which members count when it is set."""

    exception: ExceptionEvent
    interrupt: InterruptEvent
    nmi: NmiEvent
    sipi_vector: int
    flags: int
    exception_has_payload: int
    exception_payload: int


class DebugRegs:
    """`struct kvm_debugregs`: DR0 to DR3 in `db`, DR6 and DR7."""

    db: MutableSequence[int]
    dr6: int
    dr7: int
    flags: int
