"""`kvmpy doctor`: can this host run machines, and what to do if not."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Annotated

    import typer

    from kvmpy.cli.checks.finding import Check

EPILOG = """Exit status: 0 when machines can run, warnings or not; 1 when a check failed."""

_COLOURS = {"pass": "green", "warning": "yellow", "failure": "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as one JSON document.")] = False,
) -> int:
    """Check whether this host can run virtual machines, and say what to do if it cannot."""
    import sys

    from kvmpy.cli.checks import run_checks

    checks = list(run_checks())
    if as_json:
        _print_json(checks)
    elif sys.stdout is not None and sys.stdout.isatty():
        _print_table(checks)
    else:
        _print_text(checks)
    return 1 if any(check.verdict == "failure" for check in checks) else 0


def _print_json(checks: Sequence[Check]) -> None:
    import json
    from dataclasses import asdict

    print(json.dumps({"checks": [asdict(check) for check in checks]}, indent=2))


def _print_table(checks: Sequence[Check]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "check", "seen, and what to do"):
        table.add_column(heading)
    for check in checks:
        seen = Text(check.detail)
        if check.cure:
            seen.append(f"\n{check.cure}", style="cyan")
        table.add_row(Text(check.verdict, style=_COLOURS[check.verdict]), Text(check.name), seen)
    console = Console()
    console.print(table)
    console.print(_summary(checks), highlight=False)


def _print_text(checks: Sequence[Check]) -> None:
    for check in checks:
        cure = f"; {check.cure}" if check.cure else ""
        print(f"{check.verdict}: {check.name}: {check.detail}{cure}")
    print(_summary(checks))


def _summary(checks: Sequence[Check]) -> str:
    failures = sum(check.verdict == "failure" for check in checks)
    warnings = sum(check.verdict == "warning" for check in checks)
    end = f"{failures} failed, {warnings} with a warning, {len(checks) - failures - warnings} passed."
    return f"This host {'cannot run machines yet' if failures else 'can run machines'}: {end}"
