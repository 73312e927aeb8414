"""The distribution's packages: which are missing, and getting them by apt."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence

from kvmpy.errors import KvmpyError


def missing(packages: Iterable[str]) -> list[str]:
    """Those of `packages` that are not installed; all of them where there is no dpkg."""
    return [package for package in packages if not _installed(package)]


def _installed(package: str) -> bool:
    try:
        query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False
    # Several architectures of a library answer one after the other.
    return answer.returncode == 0 and answer.stdout.startswith("installed")


def need(packages: Sequence[str], purpose: str, installing: Callable[[], None] = lambda: None) -> None:
    """Makes sure that `packages` are installed: gets those missing, after a call of `installing`, if this process may.

    Raises `KvmpyError` with the command to run otherwise.
    """
    wanted = missing(packages)
    if not wanted:
        return
    command = f"apt-get install {' '.join(wanted)}"
    if not shutil.which("apt-get"):
        raise KvmpyError(f"{purpose} needs packages of Debian 12 ({', '.join(wanted)}), and there is no apt-get here")
    if os.geteuid() != 0:
        raise KvmpyError(f"{purpose} needs more packages; run `sudo {command}`")
    installing()
    update = _apt("update")
    answer = _apt("install", "--yes", "--no-install-recommends", *wanted)
    if answer.returncode:
        reason = _reason(answer) or _reason(update)
        raise KvmpyError(f"{purpose} needs more packages, and `{command}` failed: {reason}")


def run(*command: str, folder: str | None = None) -> str:
    """What a command prints; `KvmpyError` with its last line when it fails or is not there."""
    try:
        answer = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False, env=_environment()
        )
    except FileNotFoundError:
        raise KvmpyError(f"there is no {command[0]} on this host; this works on Debian and its relatives") from None
    if answer.returncode:
        raise KvmpyError(f"`{' '.join(command)}` failed: {_reason(answer)}")
    return answer.stdout


def _apt(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("apt-get", "-q", *words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


def _reason(answer: subprocess.CompletedProcess[str]) -> str:
    lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
    return lines[-1] if lines else f"status {answer.returncode}"
