"""What the tables and the devices behind them agree on: ports, register offsets, event bits, addresses.

The ports 0x600 to 0x60f are ACPI's, from 0x600 on as on a PIIX4.
"""

from __future__ import annotations

from kvmpy.x86 import layout

# The fixed hardware registers (4.8.3), by their offset in one block.
PM_BASE = 0x600
PM_PORTS = 12
PM1_STS = 0  # with PM1_EN the PM1a event block
PM1_EN = 2
PM1_CNT = 4
PM_TMR = 8

# The sleep registers of a hardware-reduced machine (4.8.3.7) have the bits of the upper bytes of PM1_CNT and PM1_STS,
# so these bytes are them.
SLEEP_CONTROL = PM1_CNT + 1
SLEEP_STATUS = PM1_STS + 1

PM_TIMER_HZ = 3_579_545

# What SLP_TYP says for soft off; `\_S5` tells the guest.
S5_SLEEP_TYPE = 5

SCI = 9

# One byte, cleared when read: what the generic event device has to tell.
GED_BASE = 0x60C
GED_PORTS = 1
EVENT_POWER_BUTTON = 0x01
EVENT_SLEEP_BUTTON = 0x02
EVENT_VM_GENERATION = 0x04

# (port, value): how a guest resets the machine.
RESET_CONTROL = (0xCF9, 0x06)
RESET_KEYBOARD = (0x64, 0xFE)

PVPANIC_BASE = 0x505
PVPANIC_PORTS = 1

# The tables follow the RSDP; the generation ID has a page of its own behind them, below the MP table.
TABLES = layout.RSDP + 0x40
VM_GENERATION_ID = 0xEF000
TABLES_END = VM_GENERATION_ID
