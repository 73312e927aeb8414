"""What a benchmark found: a table for people, JSON for programs."""

from __future__ import annotations

import os

from kvmpy.bench.rounds import Samples


class Aim:
    """A figure that is to stay at or under `limit`."""

    def __init__(self, label: str, value: float, limit: float, unit: str = "") -> None:
        self.label = label
        self.value = value
        self.limit = limit
        self.unit = unit

    @property
    def is_met(self) -> bool:
        """Whether it does."""
        return self.value <= self.limit

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{'met   ' if self.is_met else 'missed'}  {self.label}: {self.value:.4g}{unit}, aim {self.limit:g}{unit}"
        )


class Report:
    """The findings of the benchmark `name`: rows of samples, aims, and `notes` that are true of the whole run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[tuple[str, str, Samples]] = []
        self.aims: list[Aim] = []
        self.notes: dict[str, str] = {"cpus": str(os.cpu_count()), "kernel": os.uname().release}

    def add(self, label: str, samples: Samples, unit: str = "") -> Samples:
        """Adds a row; gives the samples back."""
        self.rows.append((label, unit, samples))
        return samples

    def aim(self, label: str, value: float, limit: float, unit: str = "") -> None:
        """Adds an aim."""
        self.aims.append(Aim(label, value, limit, unit))

    def table(self) -> str:
        """All of it as text in columns."""
        width = max((len(label) for label, _, _ in self.rows), default=0)
        lines = [f"{self.name}: " + ", ".join(f"{key} {value}" for key, value in self.notes.items())]
        lines.append(f"{'':{width}}  {'median':>10}  {'quartiles':>23}       rounds")
        for label, unit, samples in self.rows:
            spread = f"{samples.lower:10.4g} to {samples.upper:<9.4g}"
            lines.append(f"{label:{width}}  {samples.median:10.4g}  {spread:>23}  {unit:3}  {len(samples):6}")
        lines.extend(map(str, self.aims))
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """All of it as what JSON can hold."""
        return {
            "name": self.name,
            "notes": self.notes,
            "rows": [
                {
                    "label": label,
                    "unit": unit,
                    "median": samples.median,
                    "quartiles": [samples.lower, samples.upper],
                    "values": samples.values,
                }
                for label, unit, samples in self.rows
            ],
            "aims": [
                {"label": aim.label, "value": aim.value, "limit": aim.limit, "unit": aim.unit, "met": aim.is_met}
                for aim in self.aims
            ],
        }
