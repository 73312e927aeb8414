"""The harness: who runs when, and what is made of the figures."""

from __future__ import annotations

import pytest

from kvmpy.bench.rounds import Samples, alternate, timed


def test_median_and_quartiles() -> None:
    samples = Samples([5, 1, 3, 2, 4])
    assert (samples.lower, samples.median, samples.upper) == (2, 3, 4)


def test_a_single_round_has_its_value_as_quartiles() -> None:
    samples = Samples([7.0])
    assert (samples.lower, samples.median, samples.upper) == (7, 7, 7)


def test_no_rounds_have_no_median() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Samples([])


def test_ratios_are_taken_round_by_round() -> None:
    # The host was ten times slower in the second round, for both.
    mine, its = Samples([2.0, 20.0, 2.0]), Samples([1.0, 10.0, 1.0])
    assert mine.ratio(its).values == [2.0, 2.0, 2.0]


def test_differences_are_taken_round_by_round() -> None:
    assert Samples([3.0, 30.0]).difference(Samples([1.0, 29.0])).values == [2.0, 1.0]


def test_competitors_of_different_rounds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Samples([1.0, 2.0]).ratio(Samples([1.0]))


def test_the_order_turns_round_each_round() -> None:
    calls: list[str] = []
    alternate({"a": lambda: calls.append("a") or 1.0, "b": lambda: calls.append("b") or 2.0}, 3, warm_up=0)
    assert "".join(calls) == "abbaab"


def test_warm_up_rounds_run_and_do_not_count() -> None:
    values = iter([100.0, 50.0, 1.0, 2.0, 3.0])
    found = alternate({"a": lambda: next(values)}, 3, warm_up=2)
    assert found["a"].values == [1.0, 2.0, 3.0]


def test_each_competitor_keeps_its_own_values() -> None:
    found = alternate({"a": lambda: 1.0, "b": lambda: 2.0}, 2)
    assert (found["a"].values, found["b"].values) == ([1.0, 1.0], [2.0, 2.0])


def test_timed_gives_what_passed_on_the_clock() -> None:
    now = 10.0

    def work() -> None:
        nonlocal now
        now += 2.5

    assert timed(work, clock=lambda: now)() == 2.5
