"""The examples run and print what they say they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvmpy

EXAMPLES = Path(kvmpy.__file__).parent.parent / "examples"

# Each line of what an example prints, as a pattern.
PRINTS = {
    "01_answer_an_exit.py": [r"the guest rolled a [1-6]", r"and ended: shutdown"],
    "02_count_exits.py": [
        r"ended: shutdown; exits by reason: \{'hlt': 1, 'io': 1001\}",
        r" +1000 accesses to port 0x0080",
        r" +1 accesses to port 0x03f8",
    ],
    "03_raw_kvm.py": [r"port 0x10: the guest says 2 \+ 3 is 5", r"halted at 0x1007"],
    "05_device_with_registers.py": [r"the guest wants to be told at 24 degrees", r"and read that it rang"],
    "06_trace_exits.py": [
        r"write port 0x3fb 0x83",
        r"write port 0x3f8 0x0001",
        r"write port 0x3fb 0x03",
        r"read  port 0x3fd 0x60",
        r"write port 0x3f8 0x6b",
        r"ended: shutdown",
    ],
    "08_debug_a_guest.py": [
        r"square\(3\), called from before again\+0x7",
        r"  square\+0x3: eax is 9",
        r"  again\+0x7: eax is 9",
        r"square\(2\), called from before again\+0x7",
        r"  square\+0x3: eax is 4",
        r"  again\+0x7: eax is 4",
        r"square\(1\), called from before again\+0x7",
        r"  which shall be square\(5\)",
        r"  square\+0x3: eax is 25",
        r"  again\+0x7: eax is 25",
        r"the guest's sum: 38",
    ],
}
TOUR = "07_privileged_instructions.py"
TESTED_ELSEWHERE = {"04_boot_linux.py", "09_snapshot_fuzzer.py"}


def run(name):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_prints_what_it_should(name):
    lines = run(name)
    assert len(lines) == len(PRINTS[name])
    for line, pattern in zip(lines, PRINTS[name], strict=True):
        assert re.fullmatch(pattern, line)


def test_the_tour_has_an_answer_for_each_instruction():
    rows = [re.split(r" {2,}", line) for line in run(TOUR)]
    found = {" | ".join(row[:-2]): (row[-2], row[-1]) for row in rows}
    # What is so on each host; who answers the others depends on it.
    for instruction, answer in {
        "in al, 0x42": ("exit io", "kvmpy"),
        "mov eax, [0x10000000]": ("exit mmio", "kvmpy"),
        "hlt": ("exit hlt", "kvmpy"),
        "rdmsr | mov ecx, 0x4b564d42": ("exit x86_rdmsr", "kvmpy"),
    }.items():
        assert found[instruction] == answer
    assert found["ud2"][0] == "#UD"
    assert found["int3"][0].startswith("#BP")
    assert found["rdmsr | mov ecx, 0x12345"][0] == "#GP"
    allowed = {"kvmpy", "kvmpy, since KVM's emulator gives up", "the kernel's emulator", "KVM", "the processor"}
    assert {who for _, who in found.values()} <= allowed


def test_no_example_is_without_a_test():
    assert {path.name for path in EXAMPLES.glob("*.py")} - TESTED_ELSEWHERE == {*PRINTS, TOUR}
