"""The one cffi builder: reads the declarations beside it and writes the C source of `kvmpy._kvm`.

Each `.h` here is a subject's declarations; a "..." in them is filled in from the system's headers by the C compiler.
The `.c` files are compiled beside the generated one (pyproject.toml lists them).
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

# In the order in which cffi has to read them: a struct before what holds it.
DECLARATIONS = ("kvm_x86.h", "kvm.h", "vcpu.h", "io_uring.h", "file.h", "virtqueue.h")

PREAMBLE = """
#include <linux/kvm.h>
#include "fallbacks.h"
#include "vcpu.h"
#include "io_uring.h"
#include "file.h"
#include "virtqueue.h"
"""


def builder() -> FFI:
    """The builder, with all declarations read."""
    ffi = FFI()
    for name in DECLARATIONS:
        ffi.cdef((HERE / name).read_text())
    ffi.set_source("kvmpy._kvm", PREAMBLE)
    return ffi


def write_source() -> None:
    """Writes `cdefs/_kvm.c`, and leaves it untouched when nothing changed."""
    builder().emit_c_code(str(HERE / "_kvm.c"))


if __name__ == "__main__":
    write_source()
