"""kvmpy.machine.script.loader: a file that is run for a machine."""

from __future__ import annotations

import sys

import pytest

from kvmpy.config.machine import MachineConfig
from kvmpy.machine.builder import build
from kvmpy.machine.outcome import DEBUG_EXIT, HOST_ERROR
from kvmpy.machine.script import ScriptError, load_script
from kvmpy.testing.asm import assemble
from kvmpy.units import MIB

SOON = 20


@pytest.fixture
def machine():
    code = assemble("in al, 0x42\nout 0xf4, al\nhlt", bits=16)
    with build(MachineConfig(code, protocol="flat16", memory=MIB, debug_exit=0xF4)) as machine:
        yield machine


@pytest.fixture
def script(tmp_path, machine):
    def script(text):
        path = tmp_path / "hooks.py"
        path.write_text(text)
        return load_script(machine, path)

    return script


def test_a_script_hooks_by_decorators_and_keeps_its_names(script, machine):
    module = script("answer = 6\n\n@on_pio(0x42)\ndef look(event):\n    return answer\n")
    assert module.look.what == "on_pio(0x42)"
    outcome = machine.run(SOON)
    assert (outcome.reason, outcome.status) == (DEBUG_EXIT, 13)


def test_a_script_brings_a_device(script, machine):
    script(
        "class Box(RegisterDevice):\n    value = Register(0, 1, reset=4)\n\nmachine.pio.add(0x42, Box.size, Box())\n"
    )
    assert machine.run(SOON).status == 9


def test_a_script_may_import_what_lies_beside_it(script, machine, tmp_path):
    (tmp_path / "kvmpy_test_beside.py").write_text("VALUE = 3\n")
    before = list(sys.path)
    module = script("from kvmpy_test_beside import VALUE\non_pio(0x42, lambda event: VALUE)\n")
    assert module.VALUE == 3
    assert sys.path == before
    assert machine.run(SOON).status == 7


def test_a_script_that_fails_shows_its_own_part_alone(script):
    with pytest.raises(ScriptError, match="failed: ZeroDivisionError") as caught:
        script("def f():\n    return 1 // 0\n\nf()\n")
    details = caught.value.details
    assert details.startswith("Traceback")
    assert details.count("File ") == 2
    assert "loader" not in details


@pytest.mark.parametrize("text", ["def\n", "on_pio(", "raise SystemExit(2)", "import kvmpy_no_such_module"])
def test_any_failure_is_one_sentence(script, text):
    with pytest.raises(ScriptError) as caught:
        script(text)
    assert "\n" not in str(caught.value)
    assert "kvmpy/machine" not in caught.value.details


def test_a_script_that_is_not_there(machine, tmp_path):
    with pytest.raises(ScriptError, match="No such file"):
        load_script(machine, tmp_path / "none.py")


def test_a_hook_of_a_script_that_fails_names_the_line(script, machine):
    script("@on_pio(0x42)\ndef look(event):\n    return event.nonsense\n")
    outcome = machine.run(SOON)
    assert outcome.reason == HOST_ERROR
    assert "hooks.py" in outcome.details
    assert "return event.nonsense" in outcome.details
