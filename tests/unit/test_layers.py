"""The rules of the layout that import-linter cannot see."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import kvmpy

PACKAGE = Path(kvmpy.__file__).parent

# What costs more to import than a tiny guest takes to start.
HEAVY = (
    "typer", "click", "rich", "pydantic", "psutil", "dataclasses", "enum", "typing", "re", "inspect", "logging",
    "pathlib", "tempfile", "subprocess", "json", "socket", "signal", "shutil",
)  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_c_extension_is_touched_only_by_its_wrappers():
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name in ("kvmpy._kvm", "kvmpy.kvm._ffi") for name in imports(path))
    }
    assert users <= {"kvm", "host"}
    assert "kvm" in users


def test_the_way_to_the_first_instruction_imports_nothing_heavy():
    program = (
        "import sys; before = set(sys.modules); import kvmpy.cli.boot, kvmpy.cli.run, kvmpy.machine.assist.syscall;"
        f"print(*sorted(set({HEAVY!r}) & (set(sys.modules) - before)))"
    )
    # Without site, which imports some of it for packages of others.
    path = [str(PACKAGE.parent), *(entry for entry in sys.path if "site-packages" in entry)]
    words = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path += {path!r}; {program}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
