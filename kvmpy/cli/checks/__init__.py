"""What `kvmpy doctor` looks at: one small function for each matter, none of which changes anything.

A `FAILURE` keeps kvmpy from running a machine; a `WARNING` costs a feature or speed.  Everything that is not right
comes with its cure.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmpy.cli.checks import host, kvm
from kvmpy.cli.checks.finding import WARNING, Check
from kvmpy.errors import KvmpyError

CHECKS = (
    kvm.check_device,
    kvm.check_api_version,
    kvm.check_binding,
    kvm.check_capabilities,
    kvm.check_profile,
    kvm.check_nested,
    host.check_huge_pages,
    host.check_tun,
    host.check_vhost,
    host.check_cgroup,
    host.check_extras,
    host.check_tools,
)


def run_checks() -> Iterator[Check]:
    """All checks, in the order in which a cure of one may cure the next; one that fails by itself is a finding."""
    for check in CHECKS:
        try:
            yield from check()
        except (KvmpyError, OSError, ValueError, ImportError) as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            yield Check(name, WARNING, f"cannot be looked at: {error}")
