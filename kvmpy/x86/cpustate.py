"""The first CPU's state: from what a loader wants (`Entry`'s mode and addresses) to KVM's registers."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vcpu
    from kvmpy.kvm.structs import Segment, Sregs

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10

RFLAGS_RESERVED = 1 << 1  # Always set.

# Types of a segment descriptor (Intel SDM volume 3, table 3-1 and 3-2), accessed.
TYPE_DATA = 0x3
TYPE_CODE = 0xB
TYPE_TSS_BUSY = 0xB

FLAT_LIMIT = 0xFFFFFFFF


def set_flat_segments(sregs: Sregs, code: int, data: int, task: int, *, bits: int) -> None:
    """Protected-mode segments over all addresses, with the selectors `code`, `data` and `task`; `bits` is 32 or 64."""
    _set(sregs.cs, code, TYPE_CODE, 1, bits)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _set(segment, data, TYPE_DATA, 1, 32)
    # VT-x enters no guest without a busy TSS, and nothing uses it.
    _set(sregs.tr, task, TYPE_TSS_BUSY, 0, 0)
    sregs.tr.limit = 0x67
    sregs.tr.g = 0


def _set(segment: Segment, selector: int, kind: int, is_memory: int, bits: int) -> None:
    segment.base = 0
    segment.limit = FLAT_LIMIT
    segment.selector = selector
    segment.type = kind
    segment.present = 1
    segment.dpl = 0
    segment.s = is_memory
    segment.db = int(bits == 32)
    segment.l = int(bits == 64)
    segment.g = 1
    segment.unusable = 0


def enter_long(sregs: Sregs, cr3: int) -> None:
    """64-bit mode with the page tables at `cr3`."""
    sregs.cr3 = cr3
    sregs.cr4 |= CR4_PAE
    sregs.efer |= EFER_LME | EFER_LMA
    enter_protected(sregs)
    sregs.cr0 |= CR0_PG


def enter_protected(sregs: Sregs) -> None:
    """32-bit protected mode, without paging, the caches on."""
    sregs.cr0 = (sregs.cr0 | CR0_PE | CR0_ET | CR0_NE) & ~(CR0_CD | CR0_NW)


def enter_real(sregs: Sregs, address: int) -> int:
    """Real mode at `address` (below 1 MiB): sets the code segment, gives the instruction pointer in it.

    An address in the first 64 KiB keeps segment 0, as a boot sector at 0x7c00 expects.
    """
    segment = 0 if address < 0x10000 else address >> 4
    sregs.cs.selector = segment
    sregs.cs.base = segment << 4
    for other in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        other.selector = 0
        other.base = 0
    return address - (segment << 4)


def set_registers(vcpu: Vcpu, values: dict[str, int], rip: int, rsp: int) -> None:
    """The general registers: those in `values` by name, the others 0, interrupts off."""
    regs = vcpu.regs()
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{number}" for number in range(8, 16))):
        setattr(regs, name, values.get(name, 0))
    regs.rip = rip
    regs.rsp = rsp
    regs.rflags = RFLAGS_RESERVED
    vcpu.set_regs(regs)
