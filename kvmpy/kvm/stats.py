"""KVM's own statistics of a VM or vCPU, as the kernel publishes them through a file (api.rst 4.133)."""

from __future__ import annotations

import os
import struct

_HEADER = struct.Struct("<6I")
_DESCRIPTOR = struct.Struct("<IhHII")


def read_stats(fd: int) -> dict[str, int | tuple[int, ...]]:
    """All statistics behind `Vm.stats_fd` or `Vcpu.stats_fd`, by name; a histogram is a tuple.

    Counts are plain numbers; what they count (events, nanoseconds, bytes) is told by their names.
    """
    _, name_size, count, _, descriptors, data = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    row = _DESCRIPTOR.size + name_size
    table = os.pread(fd, row * count, descriptors)
    stats: dict[str, int | tuple[int, ...]] = {}
    for start in range(0, len(table), row):
        _, _, size, offset, _ = _DESCRIPTOR.unpack_from(table, start)
        name = table[start + _DESCRIPTOR.size : start + row].split(b"\0", 1)[0].decode()
        values = struct.unpack(f"<{size}Q", os.pread(fd, 8 * size, data + offset))
        stats[name] = values[0] if size == 1 else values
    return stats
