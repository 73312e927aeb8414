"""The reader without typer: what it reads, what it leaves, and that it never disagrees with typer."""

from __future__ import annotations

import contextlib
import io
from typing import Annotated, Any, Literal

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.cli import full, plain
from kvmpy.cli.boot import boot
from kvmpy.cli.doctor import doctor

VERBS = {"boot": "kvmpy.cli.boot:boot", "doctor": "kvmpy.cli.doctor:doctor"}

DEFAULTS = {
    "kernel": None,
    "firmware": None,
    "initrd": None,
    "append": "",
    "memory": "256M",
    "cpus": 1,
    "cpu": "host",
    "msrs": "fault",
    "protocol": "auto",
    "console": "serial",
    "debug_exit": None,
    "script": None,
    "gdb": None,
    "drive": None,
    "rng": False,
    "balloon": False,
    "virtio": "mmio",
    "timeout": None,
    "report": None,
    "name": None,
    "verbose": False,
}


def by_typer(*words: str) -> dict[str, Any] | int:
    """The values as typer reads them, or the status with which it leaves."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            call = full.read(words, VERBS)
        except SystemExit as end:
            return int(end.code or 0)
    assert call is not None
    return call[1]


def test_no_words_give_the_defaults() -> None:
    assert plain.read(boot, []) == DEFAULTS


def test_every_option_is_read() -> None:
    words = "vmlinux --firmware f -i rd --append=quiet -m 512M -c 2 --cpu host,-avx --msrs zero --protocol flat64"
    more = "--console none --debug-exit 0xf4 --script s.py --gdb :1234 --drive a,ro --drive=b --rng"
    most = "--balloon --virtio pci --timeout 1.5"
    assert plain.read(boot, [*words.split(), *more.split(), *most.split(), "--report", "r", "--name", "n", "-v"]) == {
        "kernel": "vmlinux",
        "firmware": "f",
        "initrd": "rd",
        "append": "quiet",
        "memory": "512M",
        "cpus": 2,
        "cpu": "host,-avx",
        "msrs": "zero",
        "protocol": "flat64",
        "console": "none",
        "debug_exit": "0xf4",
        "script": "s.py",
        "gdb": ":1234",
        "drive": ["a,ro", "b"],
        "rng": True,
        "balloon": True,
        "virtio": "pci",
        "timeout": 1.5,
        "report": "r",
        "name": "n",
        "verbose": True,
    }


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "-h",
        "--mem 1G",
        "--cpus two",
        "--cpus -1",
        "--cpus",
        "--console vga",
        "--timeout 1e3",
        "--timeout nan",
        "--verbose=yes",
        "-m512M",
        "-vm 1G",
        "-m=1G",
        "one two",
        "--",
        "-",
        "-m 1G -m 2G",
        "--append=",
    ],
)
def test_the_unusual_is_left_to_typer(words: str) -> None:
    assert plain.read(boot, words.split()) is None


def test_an_empty_word_and_a_name_that_is_no_text_are_left_to_typer() -> None:
    assert plain.read(boot, [""]) is None
    assert plain.read(boot, ["kernel\udcff"]) is None


WORDS = st.sampled_from(
    [
        "-i", "--initrd", "-a", "--append", "-m", "--memory", "-c", "--cpus", "--console", "serial", "none",
        "--debug-exit", "--timeout", "--report", "--name", "-v", "--verbose", "0xf4", "512M", "4", "007", "1.5", "1.",
        ".5", "1_0", "1e3", "x=y", "--memory=1G", "--append=a b", "--cpus=3", "--verbose=1", "-m1G", "-vv", "--", "-",
        "", "-1", "--nope", "--drive", "--drive=d", "--debug-exit=", "kernel", "ä", "--help", "\u0663", "1.5.2", "inf",
    ]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS | st.text(max_size=6), max_size=7))
def test_both_readers_agree_on_boot(words: list[str]) -> None:
    values = plain.read(boot, words)
    if values is not None:
        assert by_typer("boot", *words) == values


# Pairs that make sense, since words at random rarely do.
PAIRS = st.one_of(
    st.tuples(
        st.sampled_from(["-i", "--initrd", "-a", "--append", "--report", "--name", "-m", "--drive"]),
        st.text(max_size=8),
    ),
    st.tuples(st.sampled_from(["-c", "--cpus"]), st.integers().map(str) | st.text("0123456789_ +-.", max_size=5)),
    st.tuples(st.just("--timeout"), st.floats().map(str) | st.text("0123456789_ +-.e", max_size=5)),
    st.tuples(st.just("--console"), st.sampled_from(["serial", "none", "Serial"])),
    st.tuples(st.sampled_from(["-v", "--verbose"])),
    st.tuples(st.text(max_size=8)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PAIRS, max_size=4), st.booleans())
def test_both_readers_agree_on_sensible_words(pairs: list[tuple[str, ...]], joined: bool) -> None:
    words = []
    for pair in pairs:
        words += ["=".join(pair)] if joined and pair[0][:2] == "--" else pair
    values = plain.read(boot, words)
    if values is not None:
        assert by_typer("boot", *words) == values


def test_most_sensible_words_need_no_typer() -> None:
    assert plain.read(doctor, ["--json"]) == {"as_json": True}
    assert by_typer("doctor", "--json") == {"as_json": True}


def test_a_required_argument_that_is_missing_is_left_to_typer() -> None:
    def verb(path: Annotated[str, typer.Argument()]) -> None: ...

    assert plain.read(verb, ["x"]) == {"path": "x"}
    assert plain.read(verb, []) is None


def test_a_declaration_with_settings_that_change_values_is_typers_alone() -> None:
    def verb(size: Annotated[int, typer.Option(min=3)] = 4) -> None: ...

    def several(words: Annotated[list[str], typer.Argument()]) -> None: ...

    def bare(word: str = "") -> None: ...

    assert plain.read(verb, []) is None
    assert plain.read(several, ["x"]) is None
    assert plain.read(bare, []) is None


def test_option_names_come_from_the_parameter_where_none_is_given() -> None:
    def verb(
        dry_run: Annotated[bool, typer.Option()] = False, kind: Annotated[Literal["a"], typer.Option()] = "a"
    ) -> None: ...

    assert plain.read(verb, ["--dry-run", "--kind", "a"]) == {"dry_run": True, "kind": "a"}
    assert plain.read(verb, ["--no-dry-run"]) is None
