"""What a benchmark prints and writes."""

from __future__ import annotations

import json

from kvmpy.bench.report import Aim, Report
from kvmpy.bench.rounds import Samples


def make_report() -> Report:
    report = Report("speed")
    report.add("theirs", Samples([1.0, 2.0, 3.0]), "ms")
    report.aim("ours over theirs", 1.25, 1.0)
    return report


def test_an_aim_is_met_at_its_limit() -> None:
    assert Aim("x", 1.0, 1.0).is_met


def test_an_aim_above_its_limit_is_missed() -> None:
    assert not Aim("x", 1.001, 1.0).is_met


def test_the_table_has_median_spread_and_aims() -> None:
    lines = make_report().table().splitlines()
    assert lines[0].startswith("speed: ")
    assert lines[2].split() == ["theirs", "2", "1.5", "to", "2.5", "ms", "3"]
    assert lines[3] == "missed  ours over theirs: 1.25, aim 1"


def test_json_has_every_sample() -> None:
    written = json.loads(json.dumps(make_report().as_dict()))
    assert written["rows"] == [
        {"label": "theirs", "unit": "ms", "median": 2.0, "quartiles": [1.5, 2.5], "values": [1.0, 2.0, 3.0]}
    ]
    assert written["aims"] == [{"label": "ours over theirs", "value": 1.25, "limit": 1.0, "unit": "", "met": False}]


def test_rows_come_back_from_add() -> None:
    samples = Samples([1.0])
    assert Report("x").add("a", samples) is samples
