"""Alternating rounds: all competitors run in each round, so that what slows the host down slows all of them.

The order turns round from round to round, and ratios are taken within rounds; so a drift cancels out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles


class Samples:
    """What one competitor gave in each round; all figures are in the unit of `values`."""

    def __init__(self, values: Sequence[float]) -> None:
        if not values:
            raise ValueError("there are no samples to take a median of")
        self.values = list(values)
        self.median = median(self.values)
        self.lower, _, self.upper = (
            quantiles(self.values, method="inclusive") if len(self.values) > 1 else [self.median] * 3
        )
        """The quartiles: a quarter of the rounds was below `lower`, a quarter above `upper`."""

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Samples({self.median:g}, quartiles {self.lower:g} to {self.upper:g}, {len(self)} rounds)"

    def _each(self, other: Samples, combine: Callable[[float, float], float]) -> Samples:
        return Samples([combine(mine, its) for mine, its in zip(self.values, other.values, strict=True)])

    def ratio(self, other: Samples) -> Samples:
        """This over `other`, round by round."""
        return self._each(other, lambda mine, its: mine / its)

    def difference(self, other: Samples) -> Samples:
        """This minus `other`, round by round."""
        return self._each(other, lambda mine, its: mine - its)


def alternate(competitors: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1) -> dict[str, Samples]:
    """Calls each of `competitors` once a round, and gives what each returned, without the `warm_up` rounds before."""
    values: dict[str, list[float]] = {name: [] for name in competitors}
    names = list(competitors)
    for index in range(-warm_up, rounds):
        for name in names:
            value = competitors[name]()
            if index >= 0:
                values[name].append(value)
        names.reverse()
    return {name: Samples(taken) for name, taken in values.items()}


def timed(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """`function` as a competitor that returns how long it took, in the unit of `clock` (seconds)."""

    def run() -> float:
        start = clock()
        function()
        return clock() - start

    return run
