"""scripts/kvm-api-table: nothing of KVM's API is forgotten, and the document is what the code says."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

import kvmpy

SCRIPT = Path(kvmpy.__file__).parents[1] / "scripts/kvm-api-table"


@pytest.fixture(scope="module")
def table():
    loader = importlib.machinery.SourceFileLoader("kvm_api_table", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wrappers(table):
    return table.Wrappers()


@pytest.fixture(scope="module")
def headers(table):
    return "\n".join(path.read_text() for path in table.HEADERS)


def test_headers_code_and_document_agree(table, wrappers, headers):
    assert table.problems(wrappers, headers) == []


def test_an_ioctl_that_nobody_thought_of_is_named(table, wrappers, headers):
    headers += "\n#define KVM_BRAND_NEW _IOW(KVMIO, 0xfe, struct kvm_brand_new)\n"
    assert table.problems(wrappers, headers) == ["KVM_BRAND_NEW is neither wrapped nor left out for a stated reason"]


def test_another_architectures_ioctl_is_not_asked_for(table, wrappers, headers):
    headers += "\n#define KVM_ARM_BRAND_NEW _IO(KVMIO, 0xfe)\n#define KVM_CAP_PPC_BRAND_NEW 998\n"
    assert table.problems(wrappers, headers) == []


def test_a_capability_that_is_missing_or_has_another_number_is_named(table, wrappers, headers):
    headers += "\n#define KVM_CAP_BRAND_NEW 999\n#define KVM_CAP_IRQFD 1\n"
    assert table.problems(wrappers, headers) == [
        "KVM_CAP_BRAND_NEW is not in capabilities.py",
        "KVM_CAP_IRQFD is 1 in the headers and 32 in capabilities.py",
    ]


def test_a_name_of_ours_that_is_gone_is_named(table, wrappers, headers, monkeypatch):
    monkeypatch.setitem(table.KVM_IOCTLS["DeviceFd"], "other", "Device.gone")
    assert "Device.gone is named in the tables and is not in kvmpy.kvm" in table.problems(wrappers, headers)


def test_wrappers_are_found_through_private_helpers_and_functions(wrappers):
    assert wrappers.users["KVM_SET_USER_MEMORY_REGION"] == ["Vm.set_memory_region", "Vm.remove_memory_region"]
    assert wrappers.users["KVM_GET_MSRS"] == ["System.feature_msrs", "Vcpu.msrs", "Vcpu.msr"]


def test_capability_names_are_the_numbers_that_python_sees(wrappers):
    from kvmpy.kvm import capabilities

    assert {int(number): name for name, number in wrappers.capabilities.items()} == capabilities.NAMES
