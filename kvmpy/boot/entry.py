"""What a loader hands over: the state in which the first CPU enters the guest."""

from __future__ import annotations

from kvmpy.x86.cpustate import CR0_ET, CR0_PE, enter_long, enter_protected, enter_real, set_flat_segments, set_registers
from kvmpy.x86.gdt import BOOT_CS, BOOT_DS, BOOT_TSS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm import Vcpu

# 64-bit mode with paging and CR3; 32-bit protected mode without paging; real mode.
LONG = "long"
PROTECTED = "protected"
REAL = "real"
# As the processor comes out of its reset, at the end of the firmware.
RESET = "reset"


class Entry:
    """The first CPU's registers, before its first instruction.

    `mode` is LONG, PROTECTED, REAL or RESET.  `registers` holds the general registers that are not 0, by name.
    `cr3` is 0 where paging is off.  `gdt_base` and `gdt_limit` describe the table that holds BOOT_CS and BOOT_DS; both
    are 0 in real mode.  `description` says in a few words what was loaded and how; `notes` are lines worth telling
    the user.
    """

    __slots__ = ("cr3", "description", "gdt_base", "gdt_limit", "mode", "notes", "registers", "rip", "rsp")

    def __init__(
        self,
        mode: str,
        rip: int,
        *,
        rsp: int = 0,
        registers: dict[str, int] | None = None,
        cr3: int = 0,
        gdt_base: int = 0,
        gdt_limit: int = 0,
        description: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        self.mode = mode
        self.rip = rip
        self.rsp = rsp
        self.registers = registers or {}
        self.cr3 = cr3
        self.gdt_base = gdt_base
        self.gdt_limit = gdt_limit
        self.description = description
        self.notes = notes

    def __repr__(self) -> str:
        return f"Entry({self.mode}, rip={self.rip:#x}: {self.description})"

    def apply(self, vcpu: Vcpu) -> None:
        """Puts a vCPU that was never run into this state."""
        if self.mode == RESET:
            return  # That is how KVM makes it.
        sregs = vcpu.sregs()
        rip = self.rip
        if self.mode == REAL:
            rip = enter_real(sregs, rip)
        else:
            set_flat_segments(sregs, BOOT_CS, BOOT_DS, BOOT_TSS, bits=64 if self.mode == LONG else 32)
            sregs.gdt.base, sregs.gdt.limit = self.gdt_base, self.gdt_limit
            if self.mode == LONG:
                enter_long(sregs, self.cr3)
            else:
                enter_protected(sregs)
                # PVH promises that nothing else is set; the CPU itself has bit 4 set at all times.
                sregs.cr0, sregs.cr4 = CR0_PE | CR0_ET, 0
        vcpu.set_sregs(sregs)
        set_registers(vcpu, self.registers, rip, self.rsp)
