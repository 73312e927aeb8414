"""The x87's arithmetic, exact: 80-bit numbers, rounded as its control word says, with the exceptions that arise.

Pure.  A finite number is a whole `mantissa` times a power of two, so that Python's integers hold each result whole
before it is rounded once.  Intel SDM volume 1, 4.2 (formats), 4.8.3.5 (NaNs) and 8.5 (exceptions).
"""

from __future__ import annotations

# Exceptions, as bits of the status word; the control word masks each with the same bit.
IE, DE, ZE, OE, UE, PE = (1 << bit for bit in range(6))

# Rounding control.
NEAREST, DOWN, UP, TO_ZERO = range(4)

ZERO, FINITE, INFINITE, QUIET, SIGNALLING, UNSUPPORTED = range(6)

_BIAS = 16383
_TOP_BIT = 1 << 63
_QUIET_BIT = 1 << 62
INDEFINITE = 0xFFFF << 64 | _TOP_BIT | _QUIET_BIT
"""The quiet NaN that answers an invalid operation."""

# A format's bits of precision, and its least and greatest exponent of a normal number.
SINGLE = (24, -126, 127)
DOUBLE = (53, -1022, 1023)
_EXTENDED = (64, 1 - _BIAS, _BIAS)
# By the control word's precision control; 1 is reserved, and counts as 64 bits.
_PRECISIONS = (24, 64, 53, 64)


class Number:
    """One operand: `mantissa * 2**exponent`, negative with `sign`, or what `kind` says.  A NaN keeps its mantissa."""

    __slots__ = ("exponent", "is_denormal", "kind", "mantissa", "sign")

    def __init__(self, kind: int, sign: int, mantissa: int = 0, exponent: int = 0, is_denormal: bool = False) -> None:
        self.kind = kind
        self.sign = sign
        self.mantissa = mantissa
        self.exponent = exponent
        self.is_denormal = is_denormal

    @property
    def is_nan(self) -> bool:
        """Whether it has no place among the numbers."""
        return self.kind >= QUIET

    @property
    def negated(self) -> Number:
        """Minus this; a NaN stays."""
        if self.is_nan:
            return self
        return Number(self.kind, self.sign ^ 1, self.mantissa, self.exponent, self.is_denormal)


class Work:
    """An operation under the control word `control`: `flags` gathers its exceptions, `up` says that it rounded up."""

    __slots__ = ("control", "flags", "up")

    def __init__(self, control: int) -> None:
        self.control = control
        self.flags = 0
        self.up = False

    @property
    def rounding(self) -> int:
        """Where results that are not exact go."""
        return self.control >> 10 & 3

    def invalid(self) -> int:
        """The answer to an invalid operation."""
        self.flags |= IE
        return INDEFINITE


def from_extended(bits: int) -> Number:
    """A register's 80 bits."""
    sign, exponent, mantissa = bits >> 79, bits >> 64 & 0x7FFF, bits & (1 << 64) - 1
    if exponent == 0:
        if not mantissa:
            return Number(ZERO, sign)
        return Number(FINITE, sign, mantissa, 1 - _BIAS - 63, is_denormal=True)
    if not mantissa & _TOP_BIT:
        return Number(UNSUPPORTED, sign, mantissa)
    if exponent != 0x7FFF:
        return Number(FINITE, sign, mantissa, exponent - _BIAS - 63)
    if mantissa == _TOP_BIT:
        return Number(INFINITE, sign)
    return Number(QUIET if mantissa & _QUIET_BIT else SIGNALLING, sign, mantissa)


def from_memory(bits: int, form: tuple[int, int, int]) -> Number:
    """The bits of a SINGLE or a DOUBLE."""
    precision, least, greatest = form
    width = precision - 1
    fraction, exponent = bits & (1 << width) - 1, bits >> width & 2 * greatest + 1
    sign = bits >> width >> (2 * greatest + 1).bit_length()
    if exponent == 2 * greatest + 1:
        if not fraction:
            return Number(INFINITE, sign)
        mantissa = _TOP_BIT | fraction << 63 - width
        return Number(QUIET if mantissa & _QUIET_BIT else SIGNALLING, sign, mantissa)
    if exponent:
        return Number(FINITE, sign, fraction | 1 << width, exponent - greatest - width)
    if fraction:
        return Number(FINITE, sign, fraction, least - width, is_denormal=True)
    return Number(ZERO, sign)


def from_integer(value: int) -> Number:
    """An integer."""
    return Number(FINITE, int(value < 0), abs(value)) if value else Number(ZERO, 0)


def exact(number: Number) -> int:
    """The 80 bits of a number that needs no rounding, as all that is in memory."""
    if number.kind == FINITE:
        top = number.mantissa.bit_length() - 1
        return _pack(number.sign, number.mantissa, number.exponent, top + number.exponent)
    return _special(number)


def load(work: Work, number: Number) -> int:
    """The 80 bits of what a load from a SINGLE or DOUBLE gives."""
    if number.kind == SIGNALLING:
        work.flags |= IE
    elif number.is_denormal:
        work.flags |= DE
    return exact(number)


def add(work: Work, a: Number, b: Number) -> int:
    """a + b."""
    if a.is_nan or b.is_nan:
        return _nan(work, a, b)
    if INFINITE in (a.kind, b.kind):
        if a.kind == b.kind and a.sign != b.sign:
            return work.invalid()
        return _denormals(work, a, b, _special(a if a.kind == INFINITE else b))
    exponent = min(a.exponent, b.exponent)
    total = sum((-1) ** each.sign * each.mantissa << each.exponent - exponent for each in (a, b))
    if total:
        return _denormals(work, a, b, _round(work, int(total < 0), abs(total), exponent))
    sign = a.sign if a.kind == b.kind == ZERO and a.sign == b.sign else int(work.rounding == DOWN)
    return _denormals(work, a, b, sign << 79)


def subtract(work: Work, a: Number, b: Number) -> int:
    """a - b."""
    return add(work, a, b.negated)


def multiply(work: Work, a: Number, b: Number) -> int:
    """a * b."""
    if a.is_nan or b.is_nan:
        return _nan(work, a, b)
    sign = a.sign ^ b.sign
    kinds = (a.kind, b.kind)
    if INFINITE in kinds:
        return work.invalid() if ZERO in kinds else _denormals(work, a, b, _special(Number(INFINITE, sign)))
    if ZERO in kinds:
        return _denormals(work, a, b, sign << 79)
    return _denormals(work, a, b, _round(work, sign, a.mantissa * b.mantissa, a.exponent + b.exponent))


def divide(work: Work, a: Number, b: Number) -> int:
    """a / b."""
    if a.is_nan or b.is_nan:
        return _nan(work, a, b)
    sign = a.sign ^ b.sign
    if a.kind == b.kind != FINITE:
        return work.invalid()
    if a.kind == INFINITE:
        return _denormals(work, a, b, _special(Number(INFINITE, sign)))
    if b.kind == ZERO:
        work.flags |= ZE
        return _special(Number(INFINITE, sign))
    if a.kind == ZERO or b.kind == INFINITE:
        return _denormals(work, a, b, sign << 79)
    # More bits than any result keeps; one more says whether anything is left.
    quotient, rest = divmod(a.mantissa << 130, b.mantissa)
    return _denormals(work, a, b, _round(work, sign, quotient << 1 | bool(rest), a.exponent - b.exponent - 131))


def compare(work: Work, a: Number, b: Number, *, quiet: bool) -> int | None:
    """-1, 0 or 1 as a is less, equal or greater; None when they are unordered, silently for `quiet` NaNs."""
    if a.is_nan or b.is_nan:
        if not quiet or max(a.kind, b.kind) > QUIET:
            work.flags |= IE
        return None
    if a.is_denormal or b.is_denormal:
        work.flags |= DE
    ours, theirs = _order(a), _order(b)
    if ours[0] != theirs[0]:
        return 1 if ours[0] > theirs[0] else -1
    exponent = min(a.exponent, b.exponent)
    left, right = ours[1] << a.exponent - exponent, theirs[1] << b.exponent - exponent
    return (left > right) - (left < right)


def _order(number: Number) -> tuple[int, int]:
    """What orders numbers: infinities around all others; the signed mantissa."""
    sign = -1 if number.sign else 1
    return (sign if number.kind == INFINITE else 0), sign * number.mantissa


def to_memory(work: Work, number: Number, form: tuple[int, int, int]) -> int:
    """The bits of `number` as a SINGLE or a DOUBLE."""
    precision, _, greatest = form
    width = precision - 1
    infinity = 2 * greatest + 1
    if number.kind == UNSUPPORTED:
        number = from_extended(work.invalid())
    if number.kind == SIGNALLING:
        work.flags |= IE
    sign = number.sign << width + infinity.bit_length()
    if number.is_nan:
        fraction = (number.mantissa | _QUIET_BIT) >> 63 - width & (1 << width) - 1
        return sign | infinity << width | fraction
    if number.kind == INFINITE:
        return sign | infinity << width
    if number.kind == ZERO:
        return sign
    mantissa, exponent = _fit(work, number.sign, number.mantissa, number.exponent, form)
    if exponent is None:
        return sign | infinity << width
    if mantissa.bit_length() < precision:
        return sign | mantissa
    return sign | (exponent + width + greatest) << width | mantissa & (1 << width) - 1


def to_integer(work: Work, number: Number, bits: int, rounding: int | None = None) -> int:
    """`number` as a signed integer of so many bits (as unsigned); the least of them where it does not fit."""
    least = 1 << bits - 1
    if number.kind == ZERO:
        return 0
    if number.kind == FINITE and number.mantissa.bit_length() + number.exponent <= bits:
        mode = work.rounding if rounding is None else rounding
        value, inexact, up = _shift(number.mantissa, -number.exponent, mode, number.sign)
        value = -value if number.sign else value
        if -least <= value < least:
            work.flags |= PE if inexact else 0
            work.up = up
            return value & (1 << bits) - 1
    work.flags |= IE
    return least


def round_to_integer(work: Work, number: Number) -> int:
    """`number` without a fraction."""
    if number.is_nan:
        return _nan(work, number, number)
    if number.is_denormal:
        work.flags |= DE
    if number.kind != FINITE or number.exponent >= 0:
        return exact(number)
    value, inexact, work.up = _shift(number.mantissa, -number.exponent, work.rounding, number.sign)
    work.flags |= PE if inexact else 0
    return exact(Number(FINITE, number.sign, value)) if value else number.sign << 79


def _denormals(work: Work, a: Number, b: Number, result: int) -> int:
    if a.is_denormal or b.is_denormal:
        work.flags |= DE
    return result


def _nan(work: Work, a: Number, b: Number) -> int:
    """The NaN that comes of two operands, one of them a NaN: a quiet one before a signalling one, then the greater."""
    kinds = (a.kind, b.kind)
    if UNSUPPORTED in kinds:
        return work.invalid()
    if SIGNALLING in kinds:
        work.flags |= IE
    if QUIET in kinds and SIGNALLING in kinds:
        return _special(a if a.kind == QUIET else b)
    nans = [each for each in (a, b) if each.is_nan]
    return _special(max(nans, key=lambda each: (each.mantissa, -each.sign)))


def _special(number: Number) -> int:
    if number.kind == ZERO:
        return number.sign << 79
    mantissa = _TOP_BIT if number.kind == INFINITE else number.mantissa | _QUIET_BIT
    return number.sign << 79 | 0x7FFF << 64 | mantissa


def _pack(sign: int, mantissa: int, exponent: int, top: int) -> int:
    """80 bits; `top` is the exponent of the mantissa's highest bit."""
    least = 1 - _BIAS
    shift = exponent + 63 - max(top, least)
    mantissa = mantissa << shift if shift >= 0 else mantissa >> -shift
    return sign << 79 | (top + _BIAS if top >= least else 0) << 64 | mantissa


def _round(work: Work, sign: int, mantissa: int, exponent: int) -> int:
    """A register's 80 bits, in the precision that the control word asks for."""
    form = (_PRECISIONS[work.control >> 8 & 3], *_EXTENDED[1:])
    fitted, place = _fit(work, sign, mantissa, exponent, form)
    if place is None:
        return _special(Number(INFINITE, sign))
    return _pack(sign, fitted, place, fitted.bit_length() - 1 + place) if fitted else sign << 79


def _fit(work: Work, sign: int, mantissa: int, exponent: int, form: tuple[int, int, int]) -> tuple[int, int | None]:
    """What `form` can hold of it, as mantissa and exponent; no exponent for infinity."""
    precision, least, greatest = form
    top = mantissa.bit_length() - 1 + exponent
    place = max(top, least) - precision + 1
    value, inexact, up = _shift(mantissa, place - exponent, work.rounding, sign)
    if top < least:
        # It is tiny if it were so with any exponent at hand, rounded.
        free = top - precision + 1
        rounded = _shift(mantissa, free - exponent, work.rounding, sign)[0]
        if rounded.bit_length() - 1 + free < least and (inexact or not work.control & UE):
            work.flags |= UE
    if value.bit_length() - 1 + place > greatest:
        work.flags |= OE | PE
        work.up = work.rounding in (NEAREST, DOWN if sign else UP)
        return (0, None) if work.up else ((1 << precision) - 1, greatest - precision + 1)
    work.flags |= PE if inexact else 0
    work.up = up
    if value >> precision:  # Rounded up to a power of two.
        return value >> 1, place + 1
    return value, place


def _shift(mantissa: int, by: int, rounding: int, sign: int) -> tuple[int, bool, bool]:
    """`mantissa` without its lowest bits: rounded, whether that lost anything, and whether it went up."""
    if by <= 0:
        return mantissa << -by, False, False
    kept, lost = mantissa >> by, mantissa & (1 << by) - 1
    if not lost:
        return kept, False, False
    half = 1 << by - 1
    up = lost > half or (lost == half and kept & 1) if rounding == NEAREST else rounding == (DOWN if sign else UP)
    return kept + bool(up), True, bool(up)
