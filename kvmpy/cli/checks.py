"""What `kvmpy doctor` looks at: one small function for each matter, none of which changes anything.

A `FAILURE` keeps kvmpy from running a machine; a `WARNING` costs a feature or speed.  Everything that is not right
comes with its cure.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from kvmpy.errors import KvmpyError
from kvmpy.units import MIB, format_size

Verdict = Literal["pass", "warning", "failure"]
PASS: Verdict = "pass"
WARNING: Verdict = "warning"
FAILURE: Verdict = "failure"

KVM = "/dev/kvm"
API_VERSION = 12

# Asked for by number, and not through the compiled binding: that this is missing or broken is a finding too.
_KVM_GET_API_VERSION = 0xAE00
_KVM_CHECK_EXTENSION = 0xAE03


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, the verdict, what was seen, and what to do about it (empty when all is well)."""

    name: str
    verdict: Verdict
    detail: str
    cure: str = ""


@dataclass(frozen=True)
class Feature:
    """What a set of KVM's capabilities (by number in the kernel's headers) is needed for."""

    name: str
    capabilities: dict[str, int]
    without: Verdict
    cure: str = "run a newer Linux kernel"


FEATURES = (
    Feature(
        "running machines",
        {
            "IRQCHIP": 0, "USER_MEMORY": 3, "SET_TSS_ADDR": 4, "EXT_CPUID": 7, "MP_STATE": 14, "IRQ_ROUTING": 25,
            "IRQFD": 32, "IOEVENTFD": 36, "SET_IDENTITY_MAP_ADDR": 37, "IMMEDIATE_EXIT": 136,
        },
        FAILURE,
    ),
    Feature("legacy timer", {"PIT2": 33}, WARNING),
    Feature("PCI interrupts", {"SIGNAL_MSI": 77, "IRQFD_RESAMPLE": 82}, WARNING),
    Feature("fast device writes", {"COALESCED_MMIO": 15, "COALESCED_PIO": 162}, WARNING),
    Feature(
        "snapshots",
        {
            "VCPU_EVENTS": 41, "DEBUGREGS": 50, "XSAVE": 55, "XCRS": 56, "ADJUST_CLOCK": 39, "GET_TSC_KHZ": 61,
            "MANUAL_DIRTY_LOG_PROTECT2": 168,
        },
        WARNING,
    ),
    Feature(
        "snapshots from faster or slower hosts",
        {"TSC_CONTROL": 60},
        WARNING,
        "restore on hosts with the same TSC frequency, or use one that can scale it",
    ),
    Feature("debugging guests", {"SET_GUEST_DEBUG": 23}, WARNING),
    Feature("MSRs answered by scripts", {"X86_USER_SPACE_MSR": 188, "X86_MSR_FILTER": 189}, WARNING),
    Feature("KVM's own statistics", {"BINARY_STATS_FD": 203}, WARNING),
)  # fmt: skip

EXTRAS = ("serve", "net", "images", "debug", "emulate", "bench", "fleet")

# A program, the Debian package that has it, and what it is for.
TOOLS = (
    ("qemu-system-x86_64", "qemu-system-x86", "compare machines with QEMU's"),
    ("passt", "passt", "network without privileges"),
    ("virtiofsd", "qemu-system-common", "share folders with a guest"),
    ("gdb", "gdb", "debug guest kernels"),
    ("iasl", "acpica-tools", "check ACPI tables"),
)


def run_checks() -> Iterator[Check]:
    """All checks, in the order in which a cure of one may cure the next; one that fails by itself is a finding."""
    for check in (
        check_device, check_api_version, check_binding, check_capabilities, check_profile, check_nested,
        check_huge_pages, check_tun, check_vhost, check_cgroup, check_extras, check_tools,
    ):  # fmt: skip
        try:
            yield from check()
        except (KvmpyError, OSError, ValueError, ImportError) as error:
            yield Check(
                check.__name__.removeprefix("check_").replace("_", " "), WARNING, f"cannot be looked at: {error}"
            )


def check_device(path: str = KVM) -> Iterator[Check]:
    """Whether `path` is there and this user may open it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        yield Check(path, FAILURE, error.strerror or str(error), _cure_device(path))
        return
    yield Check(path, PASS, "can be opened")


def _cure_device(path: str) -> str:
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
        return (
            'sudo usermod -aG kvm $USER and log in again; the udev rule KERNEL=="kvm", GROUP="kvm", MODE="0660" '
            "gives the device to that group"
        )
    flags = _cpu_flags()
    module = "kvm_amd" if "svm" in flags else "kvm_intel"
    if flags & {"vmx", "svm"}:
        return f"sudo modprobe {module}; in a container, run it with --device {path}"
    if "hypervisor" in flags:
        return f"switch nested virtualisation on for this virtual machine, then sudo modprobe {module}"
    return "switch VT-x or AMD-V on in the firmware's settings, then sudo modprobe kvm_intel or kvm_amd"


def check_api_version(path: str = KVM) -> Iterator[Check]:
    """Whether KVM speaks the one version of its API that there has been since 2007."""
    with _device(path) as fd:
        if fd < 0:
            return
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION)
    if version == API_VERSION:
        yield Check("KVM API", PASS, f"version {version}")
    else:
        yield Check(
            "KVM API", FAILURE, f"version {version}, not {API_VERSION}", "run a Linux kernel of 2.6.22 or later"
        )


def check_binding() -> Iterator[Check]:
    """Whether the compiled part of kvmpy can be imported."""
    try:
        import kvmpy.kvm  # noqa: F401
    except ImportError as error:
        yield Check("compiled binding", FAILURE, str(error), "install kvmpy with pip, which compiles it: pip install .")
    else:
        yield Check("compiled binding", PASS, "loaded")


def check_capabilities(path: str = KVM, features: Iterable[Feature] = FEATURES) -> Iterator[Check]:
    """For each feature, which of the capabilities that it needs KVM lacks."""
    with _device(path) as fd:
        if fd < 0:
            return
        for feature in features:
            missing = [
                f"KVM_CAP_{name}"
                for name, number in feature.capabilities.items()
                if fcntl.ioctl(fd, _KVM_CHECK_EXTENSION, number) <= 0
            ]
            name = f"KVM for {feature.name}"
            if missing:
                yield Check(name, feature.without, f"missing: {', '.join(missing)}", feature.cure)
            else:
                yield Check(name, PASS, f"{len(feature.capabilities)} of {len(feature.capabilities)} capabilities")


def check_profile() -> Iterator[Check]:
    """What kind of KVM this is, as measured."""
    if not os.access(KVM, os.R_OK | os.W_OK):
        return
    from kvmpy.kvm import System
    from kvmpy.machine.profile import measure

    with System() as system:
        profile = measure(system)
    detail = (
        f"{profile.kind}: ring 0 {profile.ring0_ns:.1f} ns, ring 3 {profile.ring3_ns:.1f} ns an instruction, "
        f"an exit for port I/O {profile.pio_exit_ns:.0f} ns"
    )
    cures = {
        "nested": "run on the machine itself for full speed",
        "emulated-ring0": "guest kernels run 100 times slower here: use small ones, or a host with VT-x or AMD-V",
    }
    cure = cures.get(profile.kind, "")
    yield Check("host profile", WARNING if cure else PASS, detail, cure)


def check_nested() -> Iterator[Check]:
    """Whether this host is itself a guest, and whether its guests may run machines."""
    if "hypervisor" in _cpu_flags():
        yield Check("this host", PASS, "is a virtual machine itself: exits cost more than on hardware")
    else:
        yield Check("this host", PASS, "is hardware")
    for module in ("kvm_intel", "kvm_amd"):
        value = _read(f"/sys/module/{module}/parameters/nested")
        if value is None:
            continue
        if value in ("Y", "1"):
            yield Check("nested guests", PASS, f"{module} lets guests run machines")
        else:
            cure = f"echo 'options {module} nested=1' | sudo tee /etc/modprobe.d/kvm.conf, and load the module again"
            yield Check("nested guests", WARNING, f"{module} keeps guests from running machines", cure)


def check_huge_pages() -> Iterator[Check]:
    """Whether guest RAM gets huge pages: by itself, and from the reserved pool."""
    value = _read("/sys/kernel/mm/transparent_hugepage/enabled") or "[none]"
    chosen = value.partition("[")[2].partition("]")[0]
    if chosen in ("always", "madvise"):
        yield Check("transparent huge pages", PASS, chosen)
    else:
        cure = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        yield Check("transparent huge pages", WARNING, f"{chosen}: guest memory is slower", cure)
    pages = int(_read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") or 0)
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
        return Check(path, WARNING, f"may not be opened: no {purpose}", f"let your group use it, as with {KVM}")
    return Check(path, PASS, "can be opened")


def check_cgroup(root: str = "/sys/fs/cgroup") -> Iterator[Check]:
    """Which controllers can bound a machine's CPU time and memory."""
    controllers = set((_read(f"{root}/cgroup.controllers") or "").split())
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
            yield Check(program, WARNING, f"not there: needed to {purpose}", f"sudo apt-get install {package}")


class _device:
    """The open `path` as a context, or -1 where it cannot be opened, which `check_device` tells."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> int:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _cpu_flags() -> set[str]:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _read(path: str) -> str | None:
    """The text of a file of the kernel's, None where there is none."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None
