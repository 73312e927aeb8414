"""From source text to bytes: statements, directives, labels, and the passes over them."""

from __future__ import annotations

from kvmpy.testing.asm.encode import SEGMENT_PREFIXES, Instruction
from kvmpy.testing.asm.expression import AsmError, Expression, Symbols, UndefinedError, Words, number
from kvmpy.testing.asm.forms import mnemonics
from kvmpy.testing.asm.operands import REGISTERS, Operand, read_operand

# More is a mistake: guests are tiny.
MAX_SIZE = 16 << 20
_MAX_PASSES = 100
_MAX_COPIES = 1 << 16

_DATA = {"db": 1, "dw": 2, "dd": 4, "dq": 8}
_PREFIXES = {"lock": 0xF0, "rep": 0xF3, "repe": 0xF3, "repz": 0xF3, "repne": 0xF2, "repnz": 0xF2}
_PREFIXES |= {name: SEGMENT_PREFIXES[REGISTERS[name].number] for name in ("es", "cs", "ss", "ds", "fs", "gs")}
_SIZES = {"o16": 16, "o32": 32, "o64": 64, "a16": 16, "a32": 32, "a64": 64}


class Data:
    """`db`, `dw`, `dd` or `dq`: strings as they are, and numbers of `width` bytes."""

    def __init__(self, width: int, words: Words) -> None:
        self.width = width
        self.items: list[bytes | Expression] = []
        while True:
            token = words.peek()
            if token.kind == "string" and words.peek(1).text in (",", "end of line"):
                words.take()
                data = token.text[1:-1].encode()
                self.items.append(data + bytes(-len(data) % width))
            else:
                self.items.append(words.expression())
            if not words.accept(","):
                break

    def encode(self, symbols: Symbols, final: bool) -> bytes:
        """The bytes of all items."""
        return b"".join(item if isinstance(item, bytes) else self._number(item, symbols, final) for item in self.items)

    def _number(self, item: Expression, symbols: Symbols, final: bool) -> bytes:
        bits = 8 * self.width
        if not final:
            return bytes(self.width)
        value = item(symbols)
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise AsmError(f"{value:#x} does not fit into {bits} bits")
        return (value & (1 << bits) - 1).to_bytes(self.width, "little")


class Align:
    """`align boundary[, fill]`: fills, with nop if not told otherwise, up to a multiple of `boundary`."""

    def __init__(self, words: Words) -> None:
        self.boundary = words.expression()
        self.fill = words.expression() if words.accept(",") else number(0x90)

    def encode(self, symbols: Symbols, final: bool) -> bytes:
        """The filling."""
        boundary, fill = self.boundary(symbols), self.fill(symbols)
        if not 0 < boundary <= MAX_SIZE or boundary & boundary - 1 or not 0 <= fill <= 255:
            raise AsmError("align takes a power of two, and a byte to fill with")
        return bytes([fill]) * (-symbols["$"] % boundary)


class Statement:
    """One line's worth: `label` stands before it, `constant` is the value of `label equ value`, `times` repeats it."""

    __slots__ = ("body", "constant", "label", "line", "times")

    def __init__(self, line: int) -> None:
        self.line = line
        self.label = ""
        self.constant: Expression | None = None
        self.times: Expression | None = None
        self.body: Data | Align | Instruction | None = None

    def encode(self, symbols: dict[str, int], final: bool) -> bytes:
        """The bytes at the address `symbols["$"]`, which is left behind them."""
        if self.body is None:
            return b""
        times = self._count(symbols, final)
        if isinstance(self.body, Instruction):
            if times > _MAX_COPIES:
                raise AsmError(f"times repeats an instruction at most {_MAX_COPIES} times")
            code = bytearray()
            for _ in range(times):
                data = self.body.encode(symbols, final)
                symbols["$"] += len(data)
                code += data
                _check_size(len(code))
            return bytes(code)
        data = self.body.encode(symbols, final) if times else b""
        _check_size(len(data) * times)
        symbols["$"] += len(data) * times
        return data * times

    def _count(self, symbols: Symbols, final: bool) -> int:
        if self.times is None:
            return 1
        try:
            count = self.times(symbols)
        except UndefinedError:
            if final:
                raise
            return 0
        if count < 0 and final:
            raise AsmError(f"times {count}: what stands before it is {-count} bytes too long")
        _check_size(count)
        return max(count, 0)


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise AsmError(f"the code would be longer than {MAX_SIZE >> 20} MiB")


class Source:
    """A source text, read into statements; `bits` is the mode it begins in."""

    def __init__(self, text: str, bits: int) -> None:
        self.bits = _checked_bits(bits)
        self.statements: list[Statement] = []
        self.defined: set[str] = set()
        self._scope = ""
        for line, content in enumerate(text.split("\n"), start=1):
            try:
                self._read_line(Words(content, self._scope), Statement(line))
            except AsmError as error:
                raise AsmError(error.message, line) from None

    def _read_line(self, words: Words, statement: Statement) -> None:
        self._read_label(words, statement)
        while words.accept("times"):
            if statement.times:
                raise AsmError("times stands once before a statement")
            statement.times = words.expression()
        if words.accept("bits"):
            self.bits = _checked_bits(words.expression()({}))
        elif not words.done:
            statement.body = self._read_body(words)
        if not words.done:
            raise AsmError(f"did not expect {words.peek().text!r} here")
        if statement.label or statement.body:
            self.statements.append(statement)

    def _read_label(self, words: Words, statement: Statement) -> None:
        token, following = words.peek(), words.peek(1).text.lower()
        if token.kind != "name" or following not in (":", "equ"):
            return
        if token.text.lower() in REGISTERS or token.text in ("$", "$$"):
            raise AsmError(f"{token.text} cannot be a label")
        name = words.qualified(token.text)
        if name in self.defined:
            raise AsmError(f"{name!r} is there already")
        self.defined.add(name)
        statement.label = name
        words.take()
        words.take()
        if following == "equ":
            statement.constant = words.expression()
        elif not token.text.startswith("."):
            self._scope = words.scope = name

    def _read_body(self, words: Words) -> Data | Align | Instruction:
        word = words.take().text.lower()
        if word in _DATA:
            return Data(_DATA[word], words)
        if word == "align":
            return Align(words)
        prefixes, sizes = bytearray(), {"o": 0, "a": 0}
        while word in _PREFIXES or word in _SIZES:
            if word in _PREFIXES:
                prefixes.append(_PREFIXES[word])
            else:
                sizes[word[0]] = _SIZES[word]
            if words.done:
                raise AsmError(f"{word} needs an instruction behind it, on the same line")
            word = words.take().text.lower()
        if word not in mnemonics():
            raise AsmError(f"there is no instruction called {word!r}")
        operands: list[Operand] = []
        if not words.done:
            operands.append(read_operand(words))
            while words.accept(","):
                operands.append(read_operand(words))
        instruction = Instruction(word, operands, self.bits)
        instruction.prefixes = bytes(prefixes)
        instruction.operand_size, instruction.address_size = sizes["o"], sizes["a"]
        return instruction

    def layout(self, origin: int, constants: Symbols) -> dict[str, int]:
        """The value of each name: passes are made until no label moves any more."""
        for name in constants:
            if name in self.defined:
                raise AsmError(f"{name!r} is given from outside, and defined in the source")
        known = dict(constants)
        for _ in range(_MAX_PASSES):
            before = dict(known)
            self.emit(origin, known, final=False)
            if known == before:
                return known
        raise AsmError("the labels do not come to rest: a length depends on itself")

    def emit(self, origin: int, symbols: dict[str, int], final: bool) -> bytes:
        """One pass: the bytes, with the addresses of labels written into `symbols`."""
        code = bytearray()
        symbols["$$"] = symbols["$"] = origin
        for statement in self.statements:
            try:
                if statement.constant:
                    _define(statement.label, statement.constant, symbols, final)
                elif statement.label:
                    symbols[statement.label] = symbols["$"]
                code += statement.encode(symbols, final)
                _check_size(len(code))
            except AsmError as error:
                raise AsmError(error.message, statement.line) from None
        return bytes(code)


def _define(name: str, constant: Expression, symbols: dict[str, int], final: bool) -> None:
    try:
        symbols[name] = constant(symbols)
    except UndefinedError:
        if final:
            raise


def _checked_bits(bits: int) -> int:
    if bits not in (16, 32, 64):
        raise AsmError(f"bits is 16, 32 or 64, not {bits}")
    return bits
