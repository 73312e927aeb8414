from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmpy.backends.tap import LINE_LIMIT, PANIC, Tap

LINE = b"[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
TEXT = "Kernel panic - not syncing: VFS: Unable to mount root fs"


def test_bytes_go_through_unchanged() -> None:
    seen: list[bytes] = []
    tap = Tap(seen.append)
    tap.write(b"a")
    tap.write(b"\n\xff")
    assert seen == [b"a", b"\n\xff"]


def test_the_first_byte_has_a_time() -> None:
    times = iter([5.0, 6.0])
    tap = Tap(clock=lambda: next(times))
    assert tap.first_byte is None
    tap.write(b"a")
    tap.write(b"b")
    assert tap.first_byte == 5.0


def test_a_panic_is_recognised_byte_by_byte_and_without_a_sink() -> None:
    tap = Tap()
    for byte in b"hello\n" + LINE + b"---[ end Kernel panic - not syncing ]---\n":
        tap.write(bytes([byte]))
    assert tap.panic == TEXT


def test_a_panic_without_the_end_of_its_line_counts() -> None:
    tap = Tap()
    tap.write(LINE[:40])
    assert tap.panic == LINE[10:40].decode()


def test_no_panic_is_no_panic() -> None:
    tap = Tap()
    tap.write(b"Kernel panic\n- not syncing\nKernel pani")
    assert tap.panic is None


@given(st.binary(max_size=3 * LINE_LIMIT), st.binary(max_size=3000), st.integers(1, 700))
def test_no_panic_is_missed_however_the_bytes_come(before: bytes, after: bytes, step: int) -> None:
    tap = Tap()
    data = before + PANIC + after
    for start in range(0, len(data), step):
        tap.write(data[start : start + step])
    assert (tap.panic or "").startswith(PANIC.decode())


@given(st.lists(st.binary(max_size=2000), max_size=20))
def test_what_is_kept_is_bounded(pieces: list[bytes]) -> None:
    tap = Tap()
    for piece in pieces:
        tap.write(piece)
        assert len(tap._line) <= 2 * LINE_LIMIT + len(PANIC)


def test_a_line_that_has_begun_is_in_line_until_it_ends() -> None:
    tap = Tap()
    assert not tap.in_line
    tap.write(b"one\n/ # ")
    assert tap.in_line
    tap.write(b"x" * 3000)
    assert tap.in_line
    tap.write(b"\n")
    assert not tap.in_line
