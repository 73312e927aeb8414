"""What the tests of `kvmpy.kvm` share: a VM with a mebibyte of memory, and one vCPU."""

from __future__ import annotations

import pytest

from kvmpy.memory import GuestMemory
from kvmpy.units import MIB


@pytest.fixture
def vm(system):
    with system.create_vm() as made:
        yield made


@pytest.fixture
def memory(vm):
    with GuestMemory(MIB) as ram:
        vm.set_memory_region(0, 0, ram.regions[0].buffer)
        yield ram


@pytest.fixture
def vcpu(vm):
    with vm.create_vcpu(0) as made:
        yield made
