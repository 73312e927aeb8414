"""What fuzz targets have in common: they run under atheris (libFuzzer), from a corpus that is made in code.

    with instrumented():
        from kvmpy.boot.elf import Elf

    def one_input(data: bytes) -> None:
        ...

    if __name__ == "__main__":
        fuzz(one_input, CORPUS)

The command line is libFuzzer's, as in `-runs=100000`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


def instrumented(package: str = "kvmpy") -> AbstractContextManager[Any]:
    """A context in which what is imported of `package` tells the fuzzer which way it goes."""
    return _atheris().instrument_imports(include=[package])  # type: ignore[no-any-return]


def fuzz(one_input: Callable[[bytes], None], corpus: Sequence[bytes] = ()) -> None:
    """Calls `one_input` with inputs that begin as those of `corpus`, until it fails or the runs are over; then leaves.

    A process is forked where there is a corpus, so `one_input` must not need a thread that has been started before.
    """
    if not corpus:
        _fuzz(one_input, sys.argv)
    with tempfile.TemporaryDirectory(prefix="kvmpy-fuzz-") as folder:
        for index, seed in enumerate(corpus):
            Path(folder, f"seed-{index}").write_bytes(seed)
        # libFuzzer ends the process that it runs in, and nobody would remove the folder.
        pid = os.fork()
        if not pid:
            _fuzz(one_input, [*sys.argv, folder])
        _, status = os.waitpid(pid, 0)
    sys.exit(0 if status == 0 else 1)


def _fuzz(one_input: Callable[[bytes], None], words: list[str]) -> None:
    atheris = _atheris()
    atheris.Setup(words, one_input)
    atheris.Fuzz()
    os._exit(1)  # It does not come back.


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        sys.exit("fuzzing needs the Python package atheris: pip install atheris")
    return atheris
