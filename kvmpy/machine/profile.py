"""What this host's KVM is, measured: what an instruction in ring 0, one in ring 3, and a port exit cost.

Some KVMs (of clouds that have no VT-x or AMD-V to give) run only ring 3 on the processor and emulate the rest, a
thousand times slower.  Nothing says so, so micro guests find out, in some tens of milliseconds; a file in the user's
cache folder keeps the answer until the host boots again.
"""

from __future__ import annotations

import errno
import mmap
import time

from kvmpy.errors import KvmError
from kvmpy.machine.profile_cache import host_key, is_virtual, load, store
from kvmpy.units import PAGE_SIZE
from kvmpy.x86.cpustate import RFLAGS_RESERVED, enter_long, set_flat_segments
from kvmpy.x86.layout import IDENTITY_MAP, TSS
from kvmpy.x86.paging import PTE_LARGE, PTE_PRESENT, PTE_USER, PTE_WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.kvm import System, Vcpu, Vm

HARDWARE = "hardware"
NESTED = "nested"
EMULATED_RING0 = "emulated-ring0"
KINDS = (HARDWARE, NESTED, EMULATED_RING0)

# On a processor the two rings cost the same; an emulator costs hundreds of times as much.
_EMULATED_RATIO = 50

_ROUNDS = 5
_EXITS = 16
# A run must be long beside the exit that ends it; the bound ends the search on any host.
_LONG_ENOUGH_NS = 200_000
_LONG_ENOUGH_EXITS = 20
_MOST_LOOPS = 1 << 22

_COUNT = 0
_CODE = (
    b"\x48\xff\xc8"  # dec %rax
    b"\x75\xfb"  #      jnz 0
)
_EXIT_ROW = len(_CODE)
# No loop around them: where ring 0 is emulated, its jump would be a tenth of the cost.
_CODE += b"\xe6\x80" * _EXITS  # out %al, $0x80

# The guest's four pages: the code, and one table of each level, the last mapping 2 MiB at once.
_PML4 = 1 * PAGE_SIZE
_PDPT = 2 * PAGE_SIZE
_DIRECTORY = 3 * PAGE_SIZE
_SIZE = 4 * PAGE_SIZE

# Ports are open to every ring.
_RFLAGS_IOPL_3 = 3 << 12

# Selectors, but for the ring; the segments' hidden parts are set, so there is no GDT behind them.
_CODE_SELECTOR = 0x08
_DATA_SELECTOR = 0x10
_TASK_SELECTOR = 0x18


class HostProfile:
    """What running a guest costs on this host, in nanoseconds.

    `kind` is "hardware", "nested" (this host is a virtual machine itself) or "emulated-ring0" (KVM emulates all but
    ring 3).  `ring0_ns` and `ring3_ns` are for one round of the shortest loop, `dec; jnz`; `pio_exit_ns` is for a
    port write that comes to user space and back, answered in C.
    """

    __slots__ = ("kind", "pio_exit_ns", "ring0_ns", "ring3_ns")

    def __init__(self, kind: str, ring0_ns: float, ring3_ns: float, pio_exit_ns: float) -> None:
        self.kind = kind
        self.ring0_ns = ring0_ns
        self.ring3_ns = ring3_ns
        self.pio_exit_ns = pio_exit_ns

    @property
    def emulates_ring0(self) -> bool:
        """Whether guest kernels run in an emulator."""
        return self.kind == EMULATED_RING0

    def __repr__(self) -> str:
        costs = f"ring0_ns={self.ring0_ns:g}, ring3_ns={self.ring3_ns:g}, pio_exit_ns={self.pio_exit_ns:g}"
        return f"HostProfile({self.kind!r}, {costs})"


def kind_of(ring0_ns: float, ring3_ns: float, *, is_virtual: bool) -> str:
    """Which kind of host these costs mean; `is_virtual`: its own CPUID has the hypervisor bit."""
    if ring0_ns > _EMULATED_RATIO * ring3_ns:
        return EMULATED_RING0
    return NESTED if is_virtual else HARDWARE


def profile(system: System) -> HostProfile:
    """This host's profile: from the cache, else measured and kept there for the next time."""
    key = host_key()
    figures = load(key, KINDS)
    if figures is not None:
        return HostProfile(*figures)
    found = measure(system)
    store(key, (found.kind, found.ring0_ns, found.ring3_ns, found.pio_exit_ns))
    return found


def measure(system: System) -> HostProfile:
    """Runs the micro guests, in under 100 ms; `KvmError` when they cannot run here."""
    with mmap.mmap(-1, _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory, system.create_vm() as vm:
        _load(memory)
        with _create_vcpu(vm, memory) as vcpu:
            exit_ns, ring0_ns = _ring_costs(vcpu, 0)
            _, ring3_ns = _ring_costs(vcpu, 3)
    kind = kind_of(ring0_ns, ring3_ns, is_virtual=is_virtual())
    return HostProfile(kind, round(ring0_ns, 3), round(ring3_ns, 3), round(exit_ns, 1))


def _load(memory: mmap.mmap) -> None:
    rights = PTE_PRESENT | PTE_WRITABLE | PTE_USER
    memory[: len(_CODE)] = _CODE
    for address, entry in ((_PML4, _PDPT), (_PDPT, _DIRECTORY), (_DIRECTORY, PTE_LARGE)):
        memory[address : address + 8] = (entry | rights).to_bytes(8, "little")


def _create_vcpu(vm: Vm, memory: mmap.mmap) -> Vcpu:
    vm.set_identity_map_address(IDENTITY_MAP)
    vm.set_tss_address(TSS)
    vm.set_memory_region(0, 0, memory)
    return vm.create_vcpu(0)


def _enter_long_mode(vcpu: Vcpu, ring: int) -> None:
    """Puts the vCPU into 64-bit mode in `ring`."""
    sregs = vcpu.sregs()
    set_flat_segments(sregs, _CODE_SELECTOR | ring, _DATA_SELECTOR | ring, _TASK_SELECTOR, bits=64)
    for segment in (sregs.cs, sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        segment.dpl = ring
    enter_long(sregs, _PML4)
    vcpu.set_sregs(sregs)


def _ring_costs(vcpu: Vcpu, ring: int) -> tuple[float, float]:
    """What one port exit and one round of the loop cost in `ring`, in nanoseconds."""
    _enter_long_mode(vcpu, ring)
    _time(vcpu, _COUNT, 1, 1)  # The first entry builds KVM's own page tables.
    exit_ns = min(_time(vcpu, _EXIT_ROW, 1, _EXITS) for _ in range(_ROUNDS)) / _EXITS
    long_enough = max(_LONG_ENOUGH_NS, _LONG_ENOUGH_EXITS * exit_ns)
    loops = 64
    while loops < _MOST_LOOPS and _time(vcpu, _COUNT, loops, 1) < long_enough:
        loops *= 4
    best = min(_time(vcpu, _COUNT, loops, 1) for _ in range(_ROUNDS))
    return exit_ns, (best - exit_ns) / loops


def _time(vcpu: Vcpu, entry: int, loops: int, exits: int, clock: Callable[[], int] = time.perf_counter_ns) -> int:
    """Nanoseconds from `entry` to the `exits`-th port write, with `loops` in RAX."""
    regs = vcpu.regs()
    regs.rip, regs.rax, regs.rflags = entry, loops, RFLAGS_RESERVED | _RFLAGS_IOPL_3
    vcpu.set_regs(regs)
    start = clock()
    seen = vcpu.port_write_loop(exits)
    elapsed = clock() - start
    if seen != exits:
        raise KvmError("KVM_RUN", errno.EIO, f"the guest that measures this host ended in {vcpu.exit.name}")
    return elapsed
