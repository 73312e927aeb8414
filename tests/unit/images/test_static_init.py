"""The programs run on this host: what they do in a guest they do here too."""

from __future__ import annotations

import signal
import struct
import subprocess
from pathlib import Path

import pytest

from kvmpy.errors import ImageError
from kvmpy.images import static_init
from kvmpy.images.static_init import Program
from kvmpy.testing import linux_init


def run(program: bytes, folder: Path, given: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    path = folder / "init"
    path.write_bytes(program)
    path.chmod(0o755)
    return subprocess.run([path, "argument"], input=given, capture_output=True, timeout=10, check=False, env=variables)


def exit_with(program: Program, register: str) -> bytes:
    program.call(static_init.EXIT, register)
    return program.elf()


def test_prints_and_exits(tmp_path: Path) -> None:
    done = run(linux_init.init_printing("hello\n", end="exit"), tmp_path)
    assert (done.returncode, done.stdout) == (1, b"hello\n")


def test_prints_a_pattern_that_is_longer_than_a_pipe(tmp_path: Path) -> None:
    done = run(linux_init.init_pattern(200_000, message="end\n", end="exit"), tmp_path)
    assert done.stdout == linux_init.pattern(200_000) + b"end\n"


def test_answers_each_line(tmp_path: Path) -> None:
    done = run(linux_init.init_echo("?", "<", lines=1, end="exit"), tmp_path, b"typed\n")
    assert done.stdout == b"?<typed\n"


def test_stops_asking_at_the_end_of_input(tmp_path: Path) -> None:
    done = run(linux_init.init_echo("?", "<", lines=3, end="exit"), tmp_path, b"")
    assert (done.returncode, done.stdout) == (1, b"?")


def test_crashes_by_an_invalid_instruction(tmp_path: Path) -> None:
    done = run(linux_init.init_panic("last words", instruction=True), tmp_path)
    assert (done.returncode, done.stdout) == (-signal.SIGILL, b"last words")


def test_a_signal_is_caught(tmp_path: Path) -> None:
    program = Program()
    program.catch(static_init.SIGUSR1, "caught")
    program.write(b"ready")
    program.label("again")
    program.call(static_init.PAUSE)
    program.jump("again")
    program.label("caught")
    program.call(static_init.EXIT, 7)
    path = tmp_path / "init"
    path.write_bytes(program.elf())
    path.chmod(0o755)
    with subprocess.Popen([path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        process.send_signal(static_init.SIGUSR1)
        assert process.wait(10) == 7


def test_a_line_of_the_pattern_is_64_bytes_and_has_its_number() -> None:
    lines = linux_init.pattern(64 * 1000).splitlines(keepends=True)
    assert {len(line) for line in lines} == {64}
    assert [int(line[:8]) for line in lines] == list(range(1000))


def test_a_console_shows_carriage_returns() -> None:
    assert linux_init.on_console("a\nb\n") == b"a\r\nb\r\n"


@pytest.mark.parametrize("register", ["rbx", "rbp", "rsi", "r8", "r12", "r13", "r15"])
def test_moves_through_each_kind_of_register(tmp_path: Path, register: str) -> None:
    program = Program()
    program.move(register, 42)
    assert run(exit_with(program, register), tmp_path).returncode == 42


@pytest.mark.parametrize("register", ["rbx", "r13"])
def test_adds_and_subtracts(tmp_path: Path, register: str) -> None:
    program = Program()
    program.move(register, -5)
    program.move("r9", 12)
    program.add(register, "r9")
    program.move("rdx", 3)
    program.subtract(register, "rdx")
    assert run(exit_with(program, register), tmp_path).returncode == 4


@pytest.mark.parametrize(
    ("value", "condition", "taken"),
    [
        (0, "zero", True),
        (1, "zero", False),
        (1, "nonzero", True),
        (0, "nonzero", False),
        (-1, "negative", True),
        (0, "negative", False),
        (1, "positive", True),
        (0, "positive", False),
        (-1, "positive", False),
        (0, "not positive", True),
        (1, "not positive", False),
        (1 << 63, "negative", True),
        (0xFFFFFFFF, "negative", False),
        (1, "", True),
    ],
)
def test_jumps_by_the_sign_of_a_register(tmp_path: Path, value: int, condition: str, taken: bool) -> None:
    program = Program()
    program.move("r12", value)
    program.test("r12")
    program.jump("away", condition)
    program.call(static_init.EXIT, 0)
    program.label("away")
    program.call(static_init.EXIT, 1)
    assert run(program.elf(), tmp_path).returncode == taken


@pytest.mark.parametrize("register", ["rbx", "r12"])
def test_loads_a_number_without_its_sign(tmp_path: Path, register: str) -> None:
    program = Program()
    address = program.data(struct.pack("<I", 0xFFFFFFFF))
    program.load32(register, address)
    program.test(register)
    program.jump("positive", "positive")
    program.call(static_init.EXIT, 1)
    program.label("positive")
    program.call(static_init.EXIT, 0)
    assert run(program.elf(), tmp_path).returncode == 0


@pytest.mark.parametrize("register", ["rbx", "r15"])
def test_passes_its_environment_on(tmp_path: Path, register: str) -> None:
    program = Program()
    program.load_environment(register)
    path = program.text("/usr/bin/env")
    program.call(static_init.EXECVE, path, program.pointers(program.text("env")), register)
    program.call(static_init.EXIT, 1)
    done = run(program.elf(), tmp_path, TERM="vt100", COLOUR="blue")
    assert (done.returncode, sorted(done.stdout.split())) == (0, [b"COLOUR=blue", b"TERM=vt100"])


def test_data_can_be_written(tmp_path: Path) -> None:
    program = Program()
    buffer = program.data(bytes(8))
    program.call(static_init.READ, 0, buffer, 8)
    program.call(static_init.WRITE, 1, buffer, "rax")
    program.call(static_init.EXIT, 0)
    assert run(program.elf(), tmp_path, b"in").stdout == b"in"


def test_code_that_is_too_long_is_refused() -> None:
    program = Program()
    for _ in range(300_000):
        program.move("rax", 1 << 40)
        program.move("rbx", 1 << 40)
    with pytest.raises(ImageError, match="4 MiB"):
        program.elf()


def test_the_same_program_is_the_same_bytes() -> None:
    assert linux_init.init_printing("x") == linux_init.init_printing("x")


def test_no_segment_is_writable_and_executable() -> None:
    program = linux_init.init_printing("x")
    flags = [struct.unpack_from("<I", program, 64 + 56 * number + 4)[0] for number in range(2)]
    assert flags == [5, 6]
