"""What a check of `kvmpy doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["pass", "warning", "failure"]
PASS: Verdict = "pass"
WARNING: Verdict = "warning"
FAILURE: Verdict = "failure"


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, the verdict, what was seen, and what to do about it (empty when all is well)."""

    name: str
    verdict: Verdict
    detail: str
    cure: str = ""


def read_text(path: str) -> str | None:
    """The text of a file of the kernel's, None where there is none."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def cpu_flags() -> set[str]:
    """What the first processor can do, by the names of /proc/cpuinfo."""
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
