"""Where kvmpy keeps, for each user, what is dear to make again: kernels, archives, the host's profile."""

from __future__ import annotations

import os


def cache_folder() -> str:
    """`$KVMPY_CACHE`, else `kvmpy` in `$XDG_CACHE_HOME`, else `~/.cache/kvmpy`; it need not exist."""
    own = os.environ.get("KVMPY_CACHE")
    if own:
        return os.path.abspath(own)
    # A relative XDG path is to be ignored (XDG base directory specification 0.8).
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(shared if os.path.isabs(shared) else os.path.expanduser("~/.cache"), "kvmpy")
