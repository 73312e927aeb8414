"""Words of a source line, and the arithmetic in it.

An expression is read once and worked out in each pass, when the labels before and behind it have their addresses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from kvmpy.errors import KvmpyError

Symbols = Mapping[str, int]
Expression = Callable[[Symbols], int]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<comment>;.*)
    | (?P<string>"[^"]*"|'[^']*')
    | (?P<number>0[xX][0-9a-fA-F_]+|0[bB][01_]+|[0-9][0-9_]*)(?![\w.])
    | (?P<name>\$\$?|[A-Za-z_.][\w.]*)
    | (?P<operator><<|>>|[-+*/%&|^~()\[\],:])
    )""",
    re.VERBOSE,
)
# A larger number is a mistake, and could be made to take all memory.
_LIMIT = 1 << 65

_PRECEDENCE = {"|": 1, "^": 2, "&": 3, "<<": 4, ">>": 4, "+": 5, "-": 5, "*": 6, "/": 6, "%": 6}


class AsmError(KvmpyError, ValueError):
    """The source is not what the assembler understands; the message names the line to mend.

    `line` counts from 1; it is 0 until the line is known.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.message = message
        self.line = line


class UndefinedError(AsmError):
    """A name that has no value, or none yet in the first pass."""


class Token:
    """One word: `kind` is name, number, string, operator or end."""

    __slots__ = ("kind", "text")

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        self.text = text


_END = Token("end", "end of line")


class Words:
    """The tokens of a line, taken from left to right; `scope` is the label that `.local` names belong to."""

    def __init__(self, text: str, scope: str = "") -> None:
        self.scope = scope
        self._tokens: list[Token] = []
        self._next = 0
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise AsmError(f"cannot read {text[position:].strip()!r}")
            if match.lastgroup == "comment":
                break
            assert match.lastgroup is not None
            self._tokens.append(Token(match.lastgroup, match.group(match.lastgroup)))
            position = match.end()

    def peek(self, ahead: int = 0) -> Token:
        """The token `ahead` places on, left where it is."""
        index = self._next + ahead
        return self._tokens[index] if index < len(self._tokens) else _END

    def take(self) -> Token:
        """The next token."""
        token = self.peek()
        self._next += 1
        return token

    def accept(self, text: str) -> bool:
        """Takes the next token if it is `text` in any case, and not a string."""
        token = self.peek()
        if token.kind in ("name", "operator") and token.text.lower() == text:
            self._next += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Takes `text`, and raises `AsmError` at anything else."""
        if not self.accept(text):
            raise AsmError(f"expected {text!r} before {self.peek().text!r}")

    @property
    def done(self) -> bool:
        """Whether the line is at its end."""
        return self.peek().kind == "end"

    def qualified(self, name: str) -> str:
        """`name` in full: `.loop` after the label `copy` is `copy.loop`."""
        return self.scope + name if name.startswith(".") else name

    def expression(self, minimum: int = 1) -> Expression:
        """Reads arithmetic as long as it goes on: `+ - * / % << >> & ^ | ~`, brackets, numbers, names, 'A'."""
        left = self._primary()
        while (strength := _PRECEDENCE.get(self.peek().text, 0)) >= minimum and self.peek().kind == "operator":
            operator = self.take().text
            left = _binary(operator, left, self.expression(strength + 1))
        return left

    def term(self) -> Expression:
        """Reads a product: what may stand between the `+` and `-` of an address."""
        return self.expression(_PRECEDENCE["*"])

    def _primary(self) -> Expression:
        token = self.take()
        if token.kind == "number":
            return number(int(token.text, 0) if token.text[:1] == "0" and len(token.text) > 1 else int(token.text))
        if token.kind == "string":
            data = token.text[1:-1].encode()
            if not 1 <= len(data) <= 8:
                raise AsmError(f"{token.text} as a number must have 1 to 8 bytes")
            return number(int.from_bytes(data, "little"))
        if token.kind == "name":
            return _name(self.qualified(token.text))
        if token.text == "(":
            inner = self.expression()
            self.expect(")")
            return inner
        if token.text in ("-", "+", "~"):
            return _unary(token.text, self._primary())
        raise AsmError(f"expected a number or a name before {token.text!r}")


def number(value: int) -> Expression:
    """The expression that is always `value`."""
    if value >= _LIMIT:
        raise AsmError("a number has more than 64 bits")
    return lambda symbols: value


def _name(name: str) -> Expression:
    def value(symbols: Symbols) -> int:
        try:
            return symbols[name]
        except KeyError:
            raise UndefinedError(f"nothing is called {name!r}") from None

    return value


def _unary(operator: str, operand: Expression) -> Expression:
    if operator == "-":
        return lambda symbols: -operand(symbols)
    if operator == "~":
        return lambda symbols: ~operand(symbols)
    return operand


def _binary(operator: str, left: Expression, right: Expression) -> Expression:
    def value(symbols: Symbols) -> int:
        result = _calculate(operator, left(symbols), right(symbols))
        if abs(result) >= _LIMIT:
            raise AsmError(f"the result of {operator!r} has more than 64 bits")
        return result

    return value


def _calculate(operator: str, left: int, right: int) -> int:
    if operator in ("/", "%") and right == 0:
        raise AsmError("division by zero")
    if operator in ("<<", ">>") and not 0 <= right <= 64:
        raise AsmError("a shift goes from 0 to 64 bits")
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left // right
        case "%":
            return left % right
        case "<<":
            return left << right
        case ">>":
            return left >> right
        case "&":
            return left & right
        case "^":
            return left ^ right
        case _:
            return left | right
