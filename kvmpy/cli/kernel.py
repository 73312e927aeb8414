"""`kvmpy kernel`: guest kernels in the cache."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import typer

from kvmpy.images import kernels
from kvmpy.images.kernels import Kernel, Progress
from kvmpy.units import MIB

app = typer.Typer(help="Build, fetch and find guest kernels.", no_args_is_help=True)

Flavour = Literal["base", "full"]


@app.command()
def build(
    flavour: Annotated[
        Flavour, typer.Argument(help="base: one CPU, virtio-mmio, boots anywhere; full: SMP, PCI, ACPI, 9p, virtiofs.")
    ] = "base",
    force: Annotated[bool, typer.Option("--force", help="Build even if the cache has it.")] = False,
) -> None:
    """Build a small, unpatched Linux from the distribution's source package, once; prints its path."""
    from kvmpy.images.kernel_build import build as build_kernel

    with _progress() as progress:
        kernel = build_kernel(flavour, progress, force=force)
    print(kernel.path)


@app.command()
def fetch() -> None:
    """Get the distribution's cloud kernel and its modules; prints its path."""
    from kvmpy.images.kernel_fetch import fetch as fetch_kernel

    with _progress() as progress:
        kernel = fetch_kernel(progress)
    print(kernel.path)


@app.command("list")
def list_all(
    as_json: Annotated[bool, typer.Option("--json", help="Print the kernels as one JSON document.")] = False,
) -> None:
    """Show the kernels in the cache."""
    found = kernels.list_kernels()
    if as_json:
        print(json.dumps({"kernels": [kernels.describe(kernel) for kernel in found]}, indent=2))
    elif not found:
        print("no kernels yet: `kvmpy kernel build` builds one, `kvmpy kernel fetch` gets the distribution's")
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        for kernel in found:
            print(kernel.flavour, kernel.release, kernel.path, sep="\t")


@app.command()
def path(
    flavour: Annotated[Literal["base", "full", "fetched"], typer.Argument(help="Which kernel.")] = "base",
) -> None:
    """Print where a kernel is; fails with what to do when it is not there."""
    print(kernels.path(flavour))


def _print_table(found: list[Kernel]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("kernel", "release", "MiB", "built in", "path"):
        table.add_column(heading, overflow="fold")
    for kernel in found:
        took = f"{kernel.seconds:.0f} s" if kernel.seconds else ""
        table.add_row(kernel.flavour, kernel.release, f"{kernel.size / MIB:.1f}", took, kernel.path)
    Console().print(table)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Progress on stderr: a bar on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield kernels.plain_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, object] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                for earlier in bars.tasks:
                    bars.update(earlier.id, total=1, completed=1)
                tasks[step] = bars.add_task(step, total=total or None)
            bars.update(bars.tasks[-1].id, completed=done)

        yield show
