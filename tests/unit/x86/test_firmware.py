"""kvmpy.x86.firmware: the memory map that firmware is given.  Loading is tested on KVM, in tests/kvm."""

from __future__ import annotations

import struct

from kvmpy.memory import GuestMemory
from kvmpy.units import GIB, MIB
from kvmpy.x86.bootparams import E820_RAM, E820_RESERVED
from kvmpy.x86.firmware import e820_file
from kvmpy.x86.layout import IDENTITY_MAP, TSS_END


def entries(size):
    with GuestMemory(size) as memory:
        return list(struct.iter_unpack("<QQI", e820_file(memory.regions)))


def test_ram_is_whole_and_what_kvm_needs_is_reserved():
    assert entries(64 * MIB) == [(0, 64 * MIB, E820_RAM), (IDENTITY_MAP, TSS_END - IDENTITY_MAP, E820_RESERVED)]


def test_ram_above_the_hole_is_told():
    assert entries(4 * GIB)[:2] == [(0, 3 * GIB, E820_RAM), (4 * GIB, GIB, E820_RAM)]
