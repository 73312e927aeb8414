"""`scripts/bench` and `python -m kvmpy.bench`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kvmpy.bench.__main__ import BENCHMARKS, main

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench"


def test_the_script_runs_from_anywhere_and_names_the_benchmarks(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(name in done.stdout for name in BENCHMARKS)


def test_an_unknown_benchmark_is_a_usage_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2
    assert "nonsense" in capsys.readouterr().err


def test_no_rounds_are_a_usage_mistake() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["exits", "--rounds", "0"])
    assert caught.value.code == 2


@pytest.mark.kvm
def test_exits_writes_its_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Whether its aims are met is not the question of a test that shares the machine with others.
    assert main(["exits", "--rounds", "2", "--json", str(tmp_path / "exits.json")]) in (0, 1)
    rows = {row["label"]: row for row in json.loads((tmp_path / "exits.json").read_text())["rows"]}
    assert len(rows["port exit, C loop"]["values"]) == 2
    assert "port exit, C loop" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvmpy.bench import exits
    from kvmpy.bench.report import Report

    monkeypatch.setattr(exits, "run", lambda: Report("exits"))
    assert main(["exits", "--json", str(tmp_path / "none" / "file")]) == 1
    assert capsys.readouterr().err.startswith("bench: ")
