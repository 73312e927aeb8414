"""kvmpy.x86.cpu.msrs: answers and counts for unknown MSRs."""

from __future__ import annotations

import pytest

from kvmpy.x86.cpu.msrs import FAULT, MAX_COUNTED, OTHER, ZERO, MsrPolicy


class FakeExit:
    """What `kvmpy.kvm.exits.MsrExit` shows of an access."""

    def __init__(self, index, value=0xDEAD):
        self.index = index
        self.value = value
        self.faulted = False

    def fault(self):
        self.faulted = True


def test_zero_reads_as_zero():
    access = FakeExit(0x611)
    MsrPolicy(ZERO).read(access)
    assert (access.value, access.faulted) == (0, False)


def test_zero_swallows_writes():
    access = FakeExit(0x611)
    MsrPolicy(ZERO).write(access)
    assert not access.faulted


@pytest.mark.parametrize("verb", ["read", "write"])
def test_fault_faults(verb):
    access = FakeExit(0x611)
    getattr(MsrPolicy(FAULT), verb)(access)
    assert access.faulted


def test_accesses_are_counted():
    policy = MsrPolicy()
    for index in (0x611, 0x611, 0x1B0):
        policy.read(FakeExit(index))
    policy.write(FakeExit(0x611))
    assert (policy.reads, policy.writes) == ({0x611: 2, 0x1B0: 1}, {0x611: 1})
    assert (
        policy.summary() == "MSRs that KVM does not know: 0x611 read 2 times, 0x1b0 read 1 time, 0x611 written 1 time"
    )


def test_nothing_is_nothing_to_say():
    assert MsrPolicy().summary() == ""


def test_a_guest_that_tries_all_fills_no_memory():
    policy = MsrPolicy()
    for index in range(MAX_COUNTED + 50):
        policy.read(FakeExit(index))
    assert len(policy.reads) == MAX_COUNTED + 1
    assert policy.reads[OTHER] == 50


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="none of fault, zero"):
        MsrPolicy("ignore")
