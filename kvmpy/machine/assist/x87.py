"""The x87 in ring 0: loads, stores, arithmetic, comparisons and control, on the registers that KVM keeps of the vCPU.

Left unfinished are transcendental functions, BCD, the environment as a whole, and an operation that raises an
exception which the control word does not mask.  The pointers to the last instruction and operand stay as they are.
Intel SDM volume 1, chapter 8, and volume 2.
"""

from __future__ import annotations

from functools import partial

from kvmpy.machine.assist import float80
from kvmpy.machine.assist.cpu import RFLAGS_ARITHMETIC, RFLAGS_ZF, Cpu
from kvmpy.machine.assist.float80 import DOUBLE, INDEFINITE, SINGLE, TO_ZERO, Number, Work
from kvmpy.machine.assist.fpu import C0, C2, C3, Fpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # Reads an operand; what it says about the operand's exceptions goes into the `Work`.
    Source = Callable[[Cpu], Number]
    Operation = Callable[[Work, Number, Number], int]

_FCW_RESERVED_SET = 0x40
_FCW_USED = 0x1F7F

RFLAGS_CF = 1 << 0
RFLAGS_PF = 1 << 2

_ONE = 0x3FFF << 64 | 1 << 63
_SIGN = 1 << 79


# --- memory operands


def _read(cpu: Cpu, size: int) -> int:
    return int.from_bytes(cpu.read(cpu.operand_address(), size), "little")


def _write(cpu: Cpu, value: int, size: int) -> None:
    cpu.write(cpu.operand_address(), value.to_bytes(size, "little"))


def _float(form: tuple[int, int, int], size: int, cpu: Cpu) -> Number:
    return float80.from_memory(_read(cpu, size), form)


def _integer(size: int, cpu: Cpu) -> Number:
    value = _read(cpu, size)
    return float80.from_integer(value - (value >> 8 * size - 1 << 8 * size))


_single = partial(_float, SINGLE, 4)
_double = partial(_float, DOUBLE, 8)


# --- loads and stores


def _load(source: Source, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    operand = source(cpu)
    bits = float80.load(fpu.work, operand)
    fpu.push(bits)
    fpu.commit()


def _load_extended(cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    fpu.push(_read(cpu, 10))
    fpu.commit()


def _load_constant(bits: int, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    fpu.push(bits)
    fpu.commit()


def _load_register(index: int, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    bits = fpu.bits(index)
    underflow = bool(fpu.work.flags)
    fpu.push(bits)
    if underflow:
        fpu.work.up = False
    fpu.commit()


def _store(form: tuple[int, int, int], size: int, pops: int, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    value = float80.to_memory(fpu.work, fpu.number(0), form)
    _finish_store(cpu, fpu, value, size, pops)


def _store_extended(cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    _finish_store(cpu, fpu, fpu.bits(0), 10, 1)


def _store_integer(size: int, pops: int, cpu: Cpu, rounding: int | None = None) -> None:
    fpu = Fpu(cpu)
    value = float80.to_integer(fpu.work, fpu.number(0), 8 * size, rounding)
    _finish_store(cpu, fpu, value, size, pops)


def _finish_store(cpu: Cpu, fpu: Fpu, value: int, size: int, pops: int) -> None:
    fpu.check()
    _write(cpu, value, size)
    fpu.pop(pops)
    fpu.commit()


def _store_register(index: int, pops: int, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    fpu.put(index, fpu.bits(0))
    fpu.pop(pops)
    fpu.commit()


def _exchange(index: int, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    ours, theirs = fpu.bits(0), fpu.bits(index)
    fpu.put(0, theirs)
    fpu.put(index, ours)
    fpu.commit()


def _free(index: int, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    fpu.free(index)
    fpu.save()


# --- arithmetic


def _reversed(operation: Operation, work: Work, a: Number, b: Number) -> int:
    return operation(work, b, a)


def _with_memory(operation: Operation, source: Source, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    operand = source(cpu)
    fpu.put(0, _done(fpu, operation, 0, operand))
    fpu.commit()


def _with_register(operation: Operation, index: int, target: int, pops: int, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    fpu.put(target, _done(fpu, operation, index, fpu.number(index)))
    fpu.pop(pops)
    fpu.commit()


def _done(fpu: Fpu, operation: Operation, index: int, operand: Number) -> int:
    ours = fpu.number(0)
    if fpu.is_empty(0) or fpu.is_empty(index):
        return INDEFINITE  # Whatever the other operand is.
    return operation(fpu.work, ours, operand)


def _sign(change: Callable[[int], int], cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    bits = fpu.bits(0)
    fpu.put(0, bits if fpu.is_empty(0) else change(bits))
    fpu.commit()


def _round(cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    operand = fpu.number(0)
    fpu.put(0, INDEFINITE if fpu.is_empty(0) else float80.round_to_integer(fpu.work, operand))
    fpu.commit()


# --- comparisons


def _compare(source: Callable[[Cpu, Fpu], Number], pops: int, cpu: Cpu, *, quiet: bool = False) -> None:
    """Sets C0, C2 and C3."""
    fpu = Fpu(cpu)
    order = _order(fpu, source(cpu, fpu), quiet)
    fpu.conditions({None: C3 | C2 | C0, -1: C0, 0: C3, 1: 0}[order])
    fpu.pop(pops)
    fpu.commit()


def _compare_flags(index: int, pops: int, quiet: bool, cpu: Cpu) -> None:
    """Sets ZF, PF and CF."""
    fpu = Fpu(cpu)
    order = _order(fpu, fpu.number(index), quiet)
    fpu.pop(pops)
    fpu.commit()
    flags = {None: RFLAGS_ZF | RFLAGS_PF | RFLAGS_CF, -1: RFLAGS_CF, 0: RFLAGS_ZF, 1: 0}[order]
    cpu.regs.rflags = cpu.regs.rflags & ~RFLAGS_ARITHMETIC | flags


def _order(fpu: Fpu, operand: Number, quiet: bool) -> int | None:
    ours = fpu.number(0)
    if fpu.work.flags:  # One of them is an empty register.
        return None
    return float80.compare(fpu.work, ours, operand, quiet=quiet)


def _from_memory(source: Source, cpu: Cpu, _fpu: Fpu) -> Number:
    return source(cpu)


def _from_register(index: int, _cpu: Cpu, fpu: Fpu) -> Number:
    return fpu.number(index)


def _zero(_cpu: Cpu, _fpu: Fpu) -> Number:
    return float80.from_integer(0)


def _move_if(flags: int, wanted: bool, index: int, cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    theirs, ours = fpu.bits(index), fpu.bits(0)
    if fpu.work.flags:
        fpu.put(0, INDEFINITE)
        fpu.commit()
    else:
        fpu.put(0, theirs if bool(cpu.regs.rflags & flags) == wanted else ours)
        fpu.save()


# --- control


def _load_control(cpu: Cpu) -> None:
    fpu = Fpu(cpu)
    fpu.control = _read(cpu, 2) & _FCW_USED | _FCW_RESERVED_SET
    fpu.save()


def _store_control(cpu: Cpu) -> None:
    _write(cpu, Fpu(cpu, waits=False).control, 2)


def _store_status(cpu: Cpu) -> None:
    _write(cpu, Fpu(cpu, waits=False).status, 2)


def _status_to_ax(cpu: Cpu) -> None:
    cpu.set(0, 16, Fpu(cpu, waits=False).status)


def _clear_exceptions(cpu: Cpu) -> None:
    fpu = Fpu(cpu, waits=False)
    fpu.clear_exceptions()
    fpu.save()


def _initialise(cpu: Cpu) -> None:
    fpu = Fpu(cpu, waits=False)
    fpu.reset()
    fpu.save()


def _nothing(cpu: Cpu) -> None:
    Fpu(cpu)


# By ModRM.reg; 2 and 3 are comparisons.
_OPERATIONS: dict[int, Operation] = {
    0: float80.add,
    1: float80.multiply,
    4: float80.subtract,
    5: partial(_reversed, float80.subtract),
    6: float80.divide,
    7: partial(_reversed, float80.divide),
}
_SOURCES: dict[int, Source] = {
    0xD8: _single,
    0xDA: partial(_integer, 4),
    0xDC: _double,
    0xDE: partial(_integer, 2),
}
# FCMOVcc: the flags of which one has to be set, or with opcode 0xdb, none.
_MOVES = {0xC0: RFLAGS_CF, 0xC8: RFLAGS_ZF, 0xD0: RFLAGS_CF | RFLAGS_ZF, 0xD8: RFLAGS_PF}


def _table() -> dict[tuple[int, int], Callable[[Cpu], None]]:
    """(opcode, ModRM.reg of a memory operand or else the ModRM byte) → the function that does it."""
    table: dict[tuple[int, int], Callable[[Cpu], None]] = {
        (0xD9, 0): partial(_load, _single),
        (0xDD, 0): partial(_load, _double),
        (0xDB, 0): partial(_load, partial(_integer, 4)),
        (0xDF, 0): partial(_load, partial(_integer, 2)),
        (0xDF, 5): partial(_load, partial(_integer, 8)),
        (0xDB, 5): _load_extended,
        (0xD9, 2): partial(_store, SINGLE, 4, 0),
        (0xD9, 3): partial(_store, SINGLE, 4, 1),
        (0xDD, 2): partial(_store, DOUBLE, 8, 0),
        (0xDD, 3): partial(_store, DOUBLE, 8, 1),
        (0xDB, 7): _store_extended,
        (0xDB, 2): partial(_store_integer, 4, 0),
        (0xDB, 3): partial(_store_integer, 4, 1),
        (0xDF, 2): partial(_store_integer, 2, 0),
        (0xDF, 3): partial(_store_integer, 2, 1),
        (0xDF, 7): partial(_store_integer, 8, 1),
        (0xDB, 1): partial(_store_integer, 4, 1, rounding=TO_ZERO),
        (0xDF, 1): partial(_store_integer, 2, 1, rounding=TO_ZERO),
        (0xDD, 1): partial(_store_integer, 8, 1, rounding=TO_ZERO),
        (0xD9, 0xD0): _nothing,
        (0xD9, 0xE0): partial(_sign, _SIGN.__xor__),
        (0xD9, 0xE1): partial(_sign, (_SIGN - 1).__and__),
        (0xD9, 0xE4): partial(_compare, _zero, 0),
        (0xD9, 0xE8): partial(_load_constant, _ONE),
        (0xD9, 0xEE): partial(_load_constant, 0),
        (0xD9, 0xFC): _round,
        (0xDA, 0xE9): partial(_compare, partial(_from_register, 1), 2, quiet=True),
        (0xDE, 0xD9): partial(_compare, partial(_from_register, 1), 2),
        (0xD9, 5): _load_control,
        (0xD9, 7): _store_control,
        (0xDD, 7): _store_status,
        (0xDF, 0xE0): _status_to_ax,
        (0xDB, 0xE2): _clear_exceptions,
        (0xDB, 0xE3): _initialise,
    }
    for opcode, source in _SOURCES.items():
        table |= {(opcode, digit): partial(_with_memory, do, source) for digit, do in _OPERATIONS.items()}
        table |= {(opcode, 2 + pops): partial(_compare, partial(_from_memory, source), pops) for pops in (0, 1)}
    for index in range(8):
        for digit, do in _OPERATIONS.items():
            code = 0xC0 + 8 * digit + index
            table[0xD8, code] = partial(_with_register, do, index, 0, 0)
            table[0xDC, code] = partial(_with_register, do, index, index, 0)
            table[0xDE, code] = partial(_with_register, do, index, index, 1)
        table[0xD9, 0xC0 + index] = partial(_load_register, index)
        table[0xD9, 0xC8 + index] = partial(_exchange, index)
        table[0xDD, 0xC0 + index] = partial(_free, index)
        for pops in (0, 1):
            other = partial(_from_register, index)
            table[0xDD, 0xD0 + 8 * pops + index] = partial(_store_register, index, pops)
            table[0xD8, 0xD0 + 8 * pops + index] = partial(_compare, other, pops)
            table[0xDD, 0xE0 + 8 * pops + index] = partial(_compare, other, pops, quiet=True)
            table[0xDF if pops else 0xDB, 0xE8 + index] = partial(_compare_flags, index, pops, True)
            table[0xDF if pops else 0xDB, 0xF0 + index] = partial(_compare_flags, index, pops, False)
        for code, flags in _MOVES.items():
            table[0xDA, code + index] = partial(_move_if, flags, True, index)
            table[0xDB, code + index] = partial(_move_if, flags, False, index)
    return table


X87: dict[tuple[int, int, int | None], Callable[[Cpu], None]] = {(0, *key): do for key, do in _table().items()}
"""`Instruction.key` → the function that does it."""
