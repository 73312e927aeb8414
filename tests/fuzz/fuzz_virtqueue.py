"""Fuzzes virtqueues with what a driver can put into its rings: `python tests/fuzz/fuzz_virtqueue.py -runs=100000`."""

from __future__ import annotations

import sys

try:
    import atheris
except ImportError:
    sys.exit("fuzzing needs the Python package atheris: pip install atheris")

with atheris.instrument_imports(include=["kvmpy"]):
    from kvmpy.devices.virtio.queue import Queue, QueueError
    from kvmpy.memory import GuestMemory

SIZE = 8
MEMORY_SIZE = 0x2000
DESCRIPTORS, DRIVER, DEVICE, TABLE = 0, 0x80, 0x100, 0x180
RINGS_END = 0x200
FAR = 2**64 - 0x100
MEMORY = GuestMemory(MEMORY_SIZE)
QUEUE = Queue(MEMORY, SIZE)


def descriptor(data: bytes) -> bytes:
    """A descriptor from four bytes: where, how long, flags, and the next."""
    place, length, flags, following = data
    address = (TABLE, place * 16, MEMORY_SIZE - place, FAR + place)[flags >> 6]
    return (
        address.to_bytes(8, "little")
        + (length * (16 if flags & 0x20 else 1)).to_bytes(4, "little")
        + (flags & 7).to_bytes(2, "little")
        + (following % (SIZE + 1)).to_bytes(2, "little")
    )


def one_input(data: bytes) -> None:
    """Whatever the driver does, a queue gives chains in RAM, or `QueueError` from then on.

    Sixteen descriptors of four bytes fill the table and an indirect one, eight bytes the available ring, then each pair
    is a step: how far the available index moves and what the device does.
    """
    if len(data) < 80:
        return
    MEMORY.fill(0, RINGS_END)
    for index in range(16):
        table = DESCRIPTORS if index < 8 else TABLE - 8 * 16
        MEMORY.write(table + 16 * index, descriptor(data[4 * index : 4 * index + 4]))
    for index in range(8):
        MEMORY.write(DRIVER + 4 + 2 * index, (data[64 + index] % (SIZE + 1)).to_bytes(2, "little"))
    QUEUE.reset()
    QUEUE.event_idx, QUEUE.indirect = bool(data[72] & 1), bool(data[72] & 2)
    QUEUE.size = 1 << (data[72] >> 2 & 3)
    QUEUE.descriptors, QUEUE.driver, QUEUE.device = DESCRIPTORS, DRIVER, DEVICE
    if data[72] & 0x10:
        QUEUE.device = MEMORY_SIZE - data[73]
    if data[72] & 0x20:
        QUEUE.driver = MEMORY_SIZE - data[74]
    QUEUE.ready = True
    errors = QUEUE.stats.errors
    available = 0
    held = []
    try:
        for at in range(80, len(data) - 1, 2):
            available += data[at] % 4 if data[at] < 0xF0 else data[at] << 8
            MEMORY.write(DRIVER + 2, (available & 0xFFFF).to_bytes(2, "little"))
            for chain in QUEUE.pop_batch(data[at + 1] & 0xF):
                for address, length in chain.readable + chain.writable:
                    assert length > 0
                    assert address + length <= MEMORY_SIZE
                assert len(chain.read()) == chain.readable_length
                held.append(chain)
            if data[at + 1] & 0x10 and held:
                chain = held.pop(data[at] % len(held))
                QUEUE.push(chain, chain.write(b"\xa5" * chain.writable_length))
                QUEUE.should_notify()
            if data[at + 1] & 0x20:
                QUEUE.disable_notifications()
            if data[at + 1] & 0x40:
                QUEUE.enable_notifications()
            assert QUEUE.in_flight == len(held) <= QUEUE.size
    except QueueError:
        assert QUEUE.stats.errors > errors
        try:
            QUEUE.pop()
        except QueueError:
            return
        raise AssertionError("a broken queue was used again") from None


def main() -> None:
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
