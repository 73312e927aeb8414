"""Checks of KVM itself: is it there, what can it do, how fast is it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvmpy.cli.checks.finding import FAILURE, PASS, WARNING, Check, Verdict, cpu_flags, read_text

KVM = "/dev/kvm"
API_VERSION = 12

# Asked for by number, and not through the compiled binding: that this is missing or broken is a finding too.
_KVM_GET_API_VERSION = 0xAE00
_KVM_CHECK_EXTENSION = 0xAE03


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
    flags = cpu_flags()
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
        "emulated-ring0": "guest kernels run about 1,000 times slower: use small ones, or a host with VT-x or AMD-V",
    }
    cure = cures.get(profile.kind, "")
    yield Check("host profile", WARNING if cure else PASS, detail, cure)


def check_nested() -> Iterator[Check]:
    """Whether this host is itself a guest, and whether its guests may run machines."""
    if "hypervisor" in cpu_flags():
        yield Check("this host", PASS, "is a virtual machine itself: exits cost more than on hardware")
    else:
        yield Check("this host", PASS, "is hardware")
    for module in ("kvm_intel", "kvm_amd"):
        value = read_text(f"/sys/module/{module}/parameters/nested")
        if value is None:
            continue
        if value in ("Y", "1"):
            yield Check("nested guests", PASS, f"{module} lets guests run machines")
        else:
            cure = f"echo 'options {module} nested=1' | sudo tee /etc/modprobe.d/kvm.conf, and load the module again"
            yield Check("nested guests", WARNING, f"{module} keeps guests from running machines", cure)


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
