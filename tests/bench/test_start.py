"""The parts of the benchmark `start`, without QEMU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvmpy.bench.start import MARK, Launcher, page
from kvmpy.errors import HostError, KvmpyError
from kvmpy.units import PAGE_SIZE


def launcher(script: str) -> Launcher:
    return Launcher([sys.executable, "-c", script], mark=MARK, status=7)


GOOD = f"import os; os.write(1, {MARK!r}); os._exit(7)"


def test_the_guest_is_a_page_with_a_jump_on_the_reset_vector() -> None:
    assert len(page()) == PAGE_SIZE
    assert page()[-16] == 0xE9  # jmp rel16


def test_a_launch_gives_the_time_to_the_first_byte_and_keeps_the_whole() -> None:
    run = launcher(GOOD)
    first = run()
    assert 0 < first <= run.whole[0]
    run()
    assert len(run.whole) == 2


def test_output_in_pieces_is_read_to_its_end() -> None:
    script = "import os; [os.write(1, b'x' * 60000) for _ in range(3)]; os._exit(0)"
    assert Launcher([sys.executable, "-c", script], mark=b"x" * 180_000, status=0)() > 0


@pytest.mark.parametrize(
    "script",
    [
        "import os; os._exit(7)",
        f"import os; os.write(1, {MARK!r}); os._exit(8)",
        f"import os; os.write(1, {MARK * 2!r}); os._exit(7)",
        f"import os, signal; os.write(1, {MARK!r}); os.kill(os.getpid(), signal.SIGTERM)",
    ],
)
def test_a_launch_that_went_wrong_is_no_sample(script: str) -> None:
    with pytest.raises(KvmpyError, match="ended with status"):
        launcher(script)()


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="none"):
        Launcher([str(tmp_path / "none")])()
