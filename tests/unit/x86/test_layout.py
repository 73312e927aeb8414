from __future__ import annotations

import itertools

from kvmpy.memory import HOLE_END, HOLE_START
from kvmpy.x86 import layout

PLACES = sorted(
    [
        (0x400, 0x100),  # BIOS data area
        (layout.GDT, 0x1000),
        (layout.BOOT_STACK, layout.BOOT_STACK_TOP - layout.BOOT_STACK),
        (layout.ZERO_PAGE, 0x1000),
        (layout.SETUP_DATA, layout.SETUP_DATA_SIZE),
        (layout.PAGE_TABLES, layout.PAGE_TABLES_SIZE),
        (layout.COMMAND_LINE, layout.COMMAND_LINE_MAX),
        (layout.EBDA, layout.EBDA_END - layout.EBDA),
        (layout.RSDP, 0x1000),
        (layout.MP_TABLE, layout.MP_TABLE_SIZE),
    ]
)


def test_no_two_places_overlap():
    for (start, size), (following, _) in itertools.pairwise(PLACES):
        assert start + size <= following


def test_all_of_them_lie_below_the_kernel():
    start, size = PLACES[-1]
    assert start + size <= layout.HIGH_MEMORY


def test_page_tables_and_zero_page_are_page_aligned():
    assert layout.PAGE_TABLES % 0x1000 == layout.ZERO_PAGE % 0x1000 == 0


def test_intels_pages_are_never_ram():
    assert HOLE_START <= layout.IDENTITY_MAP
    assert layout.IDENTITY_MAP + 0x1000 <= layout.TSS
    assert layout.TSS + 3 * 0x1000 <= layout.TSS_END <= HOLE_END
