"""Reads a plain command line from a verb's typer declaration, without typer.

Annotations are strings until somebody evaluates them.  Typer evaluates them against itself; this module evaluates the
same strings against a few stand-ins that only note what they are given.  What it reads, it reads as typer does
(a property test holds that); whatever is unusual, `--help` and every mistake included, it leaves to typer.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Value = str | int | float | bool | list[str] | None

# Settings that change the help and not the values; a declaration with any other is typer's alone.
_HELP_SETTINGS = frozenset({"help", "metavar", "show_default", "rich_help_panel", "hidden"})


class _Unusual(Exception):
    """Typer has to read this one."""


class _Info:
    """What typer.Option or typer.Argument was given; an argument has no names."""

    __slots__ = ("is_option", "names")

    def __init__(self, is_option: bool, names: tuple[str, ...], settings: dict[str, object]) -> None:
        if not _HELP_SETTINGS.issuperset(settings):
            raise _Unusual
        self.is_option = is_option
        self.names = names


class _Typer:
    """Stands in for the module `typer`."""

    @staticmethod
    def Option(*names: str, **settings: object) -> _Info:
        return _Info(True, names, settings)

    @staticmethod
    def Argument(**settings: object) -> _Info:
        return _Info(False, (), settings)


class _Annotated:
    """Stands in for `typing.Annotated`: `Annotated[type, info]` is the pair of them."""

    def __class_getitem__(cls, items: tuple[object, ...]) -> tuple[object, ...]:
        return items


class _Choice:
    """Stands in for `typing.Literal`: the words that an option can be."""

    __slots__ = ("words",)

    def __init__(self, words: tuple[object, ...]) -> None:
        self.words = words

    def __class_getitem__(cls, words: object) -> _Choice:
        return cls(words if isinstance(words, tuple) else (words,))


_STAND_INS = {"typer": _Typer, "Annotated": _Annotated, "Literal": _Choice}


class _Parameter:
    """One parameter of a verb: `name` in Python, the `type` of its value, and how the command line gives it."""

    __slots__ = ("info", "is_list", "name", "type")

    def __init__(self, name: str, kind: object, info: _Info) -> None:
        self.name = name
        self.info = info
        # Of `str | None` the part that a command line can give.
        parts = [kind]
        if isinstance(kind, type(str | None)):
            parts = [part for part in getattr(kind, "__args__", ()) if part is not type(None)]
        # An option that may be given several times.
        self.is_list = parts == [list[str]] and info.is_option
        if self.is_list:
            parts = [str]
        if len(parts) != 1 or not (parts[0] in (str, int, float, bool) or isinstance(parts[0], _Choice)):
            raise _Unusual
        self.type = parts[0]

    @property
    def is_flag(self) -> bool:
        return self.type is bool

    def convert(self, text: str) -> Value:
        """The value of `text`, where every reader agrees what that is."""
        if isinstance(self.type, _Choice):
            if text in self.type.words:
                return text
        elif self.type is str:
            if text and not _has_surrogates(text):
                return text
        elif self.type is int:
            if text.isascii() and text.isdigit() and len(text) < 10:
                return int(text)
        elif self.type is float:
            whole, _, part = text.partition(".")
            if text.isascii() and whole.isdigit() and len(text) < 16 and (part.isdigit() or whole == text):
                return float(text)
        raise _Unusual


def _has_surrogates(text: str) -> bool:
    """Whether a byte of `text` was no UTF-8, which typer and we may take for different things."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def read(verb: Callable[..., object], words: Sequence[str]) -> dict[str, Value] | None:
    """The value of every parameter of `verb` as `words` give them, or None where typer has to read them.

    None also for a declaration that goes beyond options and arguments of one value each.
    """
    try:
        parameters = _parameters(verb)
        values = _defaults(verb)
        values.update(_given(parameters, words))
    except _Unusual:
        return None
    if len(values) < len(parameters):  # One without a default was not given.
        return None
    return values


def _parameters(verb: Callable[..., object]) -> list[_Parameter]:
    """The parameters of `verb` in their order."""
    parameters = []
    for name, annotation in verb.__annotations__.items():
        if name == "return":
            continue
        if not isinstance(annotation, str):
            raise _Unusual
        try:
            # Our own source text, as typer would evaluate it.
            declared = eval(annotation, verb.__globals__, _STAND_INS)
        except (AttributeError, NameError, TypeError):
            raise _Unusual from None
        if type(declared) is not tuple or len(declared) != 2 or not isinstance(declared[1], _Info):
            raise _Unusual
        parameters.append(_Parameter(name, *declared))
    if len(parameters) != verb.__code__.co_argcount:
        raise _Unusual
    return parameters


def _defaults(verb: Callable[..., object]) -> dict[str, Value]:
    """The defaults of those parameters of `verb` that have one."""
    code = verb.__code__
    defaults = verb.__defaults__ or ()
    return dict(zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults, strict=True))


def _given(parameters: Sequence[_Parameter], words: Sequence[str]) -> dict[str, Value]:
    """The values that `words` give, by the name of the parameter."""
    options: dict[str, _Parameter] = {}
    arguments: list[_Parameter] = []
    for declared in parameters:
        if not declared.info.is_option:
            arguments.append(declared)
            continue
        for option in declared.info.names or ("--" + declared.name.replace("_", "-"),):
            if option[:1] != "-" or "/" in option:
                raise _Unusual
            options[option] = declared

    values: dict[str, Value] = {}
    lists: dict[str, list[str]] = {}
    places = iter(arguments)
    rest = iter(words)
    for word in rest:
        parameter: _Parameter | None
        if word[:1] != "-":
            parameter, text = next(places, None), word
        elif (parameter := options.get(word)) is not None:
            text = "" if parameter.is_flag else next(rest, "")
        else:
            option, _, text = word.partition("=")
            parameter = options.get(option) if option[:2] == "--" else None
            if parameter is not None and parameter.is_flag:
                raise _Unusual
        # A value that looks like an option may be a forgotten value, and the last of two may be a mistake.
        if parameter is None or text[:1] == "-":
            raise _Unusual
        if parameter.is_list:
            parameter.convert(text)
            lists.setdefault(parameter.name, []).append(text)
            continue
        if parameter.name in values:
            raise _Unusual
        values[parameter.name] = True if parameter.is_flag and parameter.info.is_option else parameter.convert(text)
    values.update(lists)
    return values
