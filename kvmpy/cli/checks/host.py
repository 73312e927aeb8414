"""Checks of what is around KVM: memory, network, limits, packages, programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata

from kvmpy.cli.checks.finding import PASS, WARNING, Check, read_text
from kvmpy.units import MIB, format_size

EXTRAS = ("serve", "net", "images", "debug", "emulate", "bench", "fleet")

# A program, the Debian package that has it, and what it is for.
TOOLS = (
    ("qemu-system-x86_64", "qemu-system-x86", "comparing machines with QEMU's"),
    ("passt", "passt", "networks without privileges"),
    ("virtiofsd", "qemu-system-common", "sharing folders with a guest"),
    ("gdb", "gdb", "debugging guest kernels"),
    ("iasl", "acpica-tools", "checking ACPI tables"),
)


def check_huge_pages() -> Iterator[Check]:
    """Whether guest RAM gets huge pages: by itself, and from the reserved pool."""
    value = read_text("/sys/kernel/mm/transparent_hugepage/enabled") or "[none]"
    chosen = value.partition("[")[2].partition("]")[0]
    if chosen in ("always", "madvise"):
        yield Check("transparent huge pages", PASS, chosen)
    else:
        cure = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        yield Check("transparent huge pages", WARNING, f"{chosen}: guest memory is slower", cure)
    pages = int(read_text("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") or 0)
    yield Check("reserved huge pages", PASS, f"{format_size(pages * 2 * MIB)} in pages of 2M" if pages else "none")


def check_tun() -> Iterator[Check]:
    """Whether tap devices can be made."""
    yield _check_node("/dev/net/tun", "network through tap devices", "sudo modprobe tun")


def check_vhost() -> Iterator[Check]:
    """Whether the kernel can serve guests' network and sockets itself."""
    yield _check_node("/dev/vhost-net", "fast network through tap devices", "sudo modprobe vhost_net")
    yield _check_node("/dev/vhost-vsock", "sockets to the guest through the kernel", "sudo modprobe vhost_vsock")


def _check_node(path: str, purpose: str, cure: str) -> Check:
    if not os.path.exists(path):
        return Check(path, WARNING, f"not there: no {purpose}", cure)
    if not os.access(path, os.R_OK | os.W_OK):
        return Check(path, WARNING, f"may not be opened: no {purpose}", "let your group use it, as with /dev/kvm")
    return Check(path, PASS, "can be opened")


def check_cgroup(root: str = "/sys/fs/cgroup") -> Iterator[Check]:
    """Which controllers can bound a machine's CPU time and memory."""
    controllers = set((read_text(f"{root}/cgroup.controllers") or "").split())
    version = "v2"
    if not controllers & {"cpu", "memory"}:
        first = {name for name in ("cpu", "memory", "cpuset") if os.path.isdir(f"{root}/{name}")}
        if first:
            controllers, version = first, "v1"
    missing = {"cpu", "memory"} - controllers
    if missing:
        cure = "boot the host with systemd.unified_cgroup_hierarchy=1"
        yield Check("cgroup", WARNING, f"no {' and '.join(sorted(missing))} controller: no limits for machines", cure)
    else:
        yield Check("cgroup", PASS, f"{version} with {', '.join(sorted(controllers & {'cpu', 'memory', 'cpuset'}))}")


def check_extras(distribution: str = "kvmpy") -> Iterator[Check]:
    """Which of the package's extras are installed, by what the installed package says that they need."""
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        yield Check("extras", WARNING, f"{distribution} is not installed, only found", "pip install .")
        return
    provided = found.metadata.get_all("Provides-Extra") or []
    for extra in EXTRAS:
        if extra not in provided:
            continue
        missing = sorted(name for name in _requirements(found, extra) if not _is_installed(name))
        if missing:
            cure = f"pip install '{distribution}[{extra}]'"
            yield Check(f"extra {extra}", WARNING, f"missing: {', '.join(missing)}", cure)
        else:
            yield Check(f"extra {extra}", PASS, "installed")


def _requirements(found: metadata.Distribution, extra: str) -> Iterator[str]:
    """The names of the packages that `extra` adds."""
    for requirement in found.requires or []:
        need, _, marker = requirement.partition(";")
        if f"extra == '{extra}'" in marker.replace('"', "'"):
            end = next((i for i, c in enumerate(need) if not (c.isalnum() or c in "-_.")), len(need))
            yield need[:end]


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_tools(find: Callable[[str], str | None] = shutil.which) -> Iterator[Check]:
    """Which programs are there that kvmpy works with."""
    for program, package, purpose in TOOLS:
        # Debian keeps the daemon of virtiofs out of the path.
        place = find(program) or find(f"/usr/lib/qemu/{program}") or find(f"/usr/libexec/{program}")
        if place:
            yield Check(program, PASS, place)
        else:
            yield Check(program, WARNING, f"not there: needed for {purpose}", f"sudo apt-get install {package}")
