"""`python -m kvmpy`: the same as the command `kvmpy`."""

from __future__ import annotations

from kvmpy.cli.main import command

command()
