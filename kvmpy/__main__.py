"""`python -m kvmpy`: the same as the command `kvmpy`."""

from __future__ import annotations

import sys

from kvmpy.cli.main import main

sys.exit(main())
