"""The command line as typer reads it: help, completion, mistakes, and whatever `plain` leaves to it."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Call = tuple[Callable[..., int], dict[str, Any]]

HELP = """Virtual machines over /dev/kvm: boot them, look inside them, script them.

Each command explains itself: kvmpy COMMAND --help."""

EPILOG = """`kvmpy doctor` says whether this host can run virtual machines, and what to do if it cannot.

KVMPY_DEBUG=1 in the environment shows a traceback where an error of kvmpy itself is otherwise one sentence."""


def read(words: Sequence[str], verbs: Mapping[str, str]) -> Call | None:
    """The verb that `words` call and the values they give it; None where typer has done it all, as for a sub-command.

    `verbs` has the module and attribute of each verb as `module:attribute`; only the one that `words` begin with is
    imported, or all of them where none is.  Leaves with `SystemExit` after help, and with status 2 after a mistake.
    """
    calls: list[Call] = []
    chosen = {words[0]: verbs[words[0]]} if words and words[0] in verbs else verbs
    app = _app({name: _load(place) for name, place in chosen.items()}, calls)
    try:
        app(args=list(words), prog_name="kvmpy")
    except SystemExit as end:
        if end.code or not calls:
            raise
    return calls[0] if calls else None


def _load(place: str) -> Any:
    """The function or typer app at `module:attribute`, its module's annotations made readable for typer."""
    module_name, _, attribute = place.partition(":")
    module = importlib.import_module(module_name)
    for name, value in (("typer", typer), ("Annotated", Annotated), ("Literal", Literal)):
        # Verbs import these for type checkers only, to start faster.
        module.__dict__.setdefault(name, value)
    return getattr(module, attribute)


def _app(verbs: Mapping[str, Any], calls: list[Call]) -> typer.Typer:
    """A typer app of `verbs`; calling one notes the call in `calls`, for typer's ways end before a machine starts."""
    app = typer.Typer(
        help=HELP,
        epilog=EPILOG,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def kvmpy(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    kvmpy.__doc__ = HELP
    for name, verb in verbs.items():
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=name)
        else:
            epilog = verb.__globals__.get("EPILOG")
            app.command(name, epilog=epilog, no_args_is_help=False)(_note(verb, calls))
    return app


def _note(verb: Callable[..., int], calls: list[Call]) -> Callable[..., None]:
    """A function that looks like `verb` to typer and notes how it was called."""

    @functools.wraps(verb)
    def note(**values: Any) -> None:
        calls.append((verb, values))

    return note


def _print_version(wanted: bool) -> None:
    if wanted:
        from kvmpy.cli.main import version

        print(version())
        raise typer.Exit
