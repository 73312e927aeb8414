"""`python -m kvmpy.bench NAME`: runs one benchmark and prints what it found."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module

from kvmpy.errors import KvmpyError

BENCHMARKS = {
    "accesses": "what a write to a port or to memory-mapped I/O costs, by who answers it, and two vCPUs at once",
    "exits": "what a port exit costs that a Python device answers, against a bare loop in C",
    "start": "from exec to a guest's first port write, against QEMU's microvm",
}


def main(words: Sequence[str] | None = None) -> int:
    """Runs the benchmark that `words` name; 0 when all its aims were met, 1 when not or when it could not run."""
    parser = argparse.ArgumentParser(prog="bench", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "\n".join(f"{name:10}{what}" for name, what in BENCHMARKS.items())
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, help="how often each competitor runs")
    parser.add_argument("--json", metavar="FILE", help="write all samples to this file")
    options = parser.parse_args(words)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    benchmark = import_module(f"kvmpy.bench.{options.name}")
    try:
        report = benchmark.run(**({} if options.rounds is None else {"rounds": options.rounds}))
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(report.as_dict(), file, indent=1)
    except (KvmpyError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.table())
    return 0 if all(aim.is_met for aim in report.aims) else 1


if __name__ == "__main__":
    sys.exit(main())
