"""cdefs/virtqueue.c by itself: hostile rings under AddressSanitizer and UBSan, and a driver that races with us."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CDEFS = HERE.parents[3] / "cdefs"
CC = ["gcc", "-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{CDEFS}"]
SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

LOW_SIZE = 0x2000
HIGH_START = 1 << 32
HIGH_SIZE = 0x1000


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a program beside this file, once each."""
    folder = tmp_path_factory.mktemp("virtqueue")
    done = {}

    def compile(name, *flags):
        if name not in done:
            done[name] = folder / name
            sources = [HERE / f"{name}.c", CDEFS / "virtqueue.c"]
            subprocess.run([*CC, *flags, *sources, "-o", done[name]], check=True)
        return done[name]

    return compile


def any_address(source):
    """Mostly RAM, often at its very ends, sometimes not."""
    end = source.choice([LOW_SIZE, HIGH_START + HIGH_SIZE, 0, HIGH_START, 2**64])
    near = (end + source.randrange(-80, 80)) % 2**64
    return near if source.random() < 0.1 else source.choice([source.randrange(LOW_SIZE - 256), HIGH_START + 0x100])


def one_case(source):
    """Rings that are nearly right, in RAM that is nearly what they need, and steps that change them meanwhile."""
    size = source.choice([1, 2, 4, 8, 16, 16, 16, source.randrange(64)])
    low = bytearray(source.randbytes(LOW_SIZE)) if source.random() < 0.1 else bytearray(LOW_SIZE)
    descriptors, driver, device = 0x1000, 0x1400, 0x1800
    table = 0x800
    for place in [*range(descriptors, descriptors + 16 * 16, 16), *range(table, table + 16 * 24, 16)]:
        length = source.choice([1, 16, 64, 256]) if source.random() < 0.95 else source.randrange(2**32)
        flags = source.choice([0, 0, 1, 1, 2, 3, 4]) if source.random() < 0.95 else source.randrange(8)
        address = source.choice([table, any_address(source)]) if flags & 4 else any_address(source)
        struct.pack_into("<QIHH", low, place, address, length, flags, source.randrange(17))
    for slot in range(16):
        struct.pack_into("<H", low, driver + 4 + 2 * slot, source.randrange(max(size, 1)))
    if source.random() < 0.2:
        # Rings that end exactly where RAM does, a little later, or lie anywhere.
        end = source.choice([LOW_SIZE, HIGH_START + HIGH_SIZE]) + source.choice([0, 0, 0, 1, 2, 4])
        descriptors = source.choice([descriptors, end - 16 * size])
        driver = source.choice([driver, end - 6 - 2 * size, any_address(source)])
        device = source.choice([device, end - 6 - 8 * size - 2, end - 6 - 8 * size, any_address(source)])
    steps = []
    index = 0
    for _ in range(source.randrange(1, 12)):
        index += source.choice([0, 1, 1, 2, 3]) if source.random() < 0.99 else source.randrange(0x10000)
        length, offset, value = 2, driver + 2, index & 0xFFFF
        if source.random() < 0.2:
            length, offset, value = source.randrange(9), source.randrange(0x800, 0x1A00), source.randrange(2**64)
        steps.append(struct.pack("<HHIQ", length, source.randrange(8), offset % 2**32, value))
    rings = (descriptors % 2**64, driver % 2**64, device % 2**64)
    head = struct.pack("<QQQIIII", *rings, size, source.randrange(2), source.random() < 0.8, len(steps))
    return head + bytes(low) + b"".join(steps)


def test_hostile_rings_touch_nothing_but_ram(compiled):
    source = random.Random(3)
    cases = b"".join(one_case(source) for _ in range(4000))
    done = subprocess.run([compiled("queue_hostile", *SANITIZERS)], input=cases, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    taken, broken = map(int, done.stdout.split())
    assert taken > 2000
    assert broken > 2000


def test_one_byte_too_far_would_be_seen(compiled):
    done = subprocess.run([compiled("queue_hostile", *SANITIZERS), "too-far"], capture_output=True, timeout=60)
    assert done.returncode != 0
    assert b"runtime error" in done.stderr or b"AddressSanitizer" in done.stderr


@pytest.mark.parametrize("event_idx", ["0", "1"])
def test_a_driver_on_another_processor_is_never_left_waiting(compiled, event_idx):
    done = subprocess.run([compiled("queue_race", "-O2"), "500000", event_idx], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode()
