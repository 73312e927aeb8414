"""What all tests share: who needs KVM, and what happens where it is missing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kvmpy.errors import KvmError
from kvmpy.kvm import System

HERE = Path(__file__).parent

# Under nohup or in a job of the background these are ignored, and what we start would ignore them too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in ("kvm", "linux"):
            item.add_marker(pytest.mark.kvm)
        if folder == "linux":
            item.add_marker(pytest.mark.linux)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kvm") and not os.environ.get("KVMPY_REQUIRE_KVM") and not os.path.exists("/dev/kvm"):
        pytest.skip("this machine has no /dev/kvm")


@pytest.fixture
def system():
    """The open /dev/kvm; a test that asks for it fails where it cannot be opened."""
    try:
        with System() as opened:
            yield opened
    except KvmError as error:
        pytest.fail(str(error))
