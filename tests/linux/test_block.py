"""Linux with disks: what it writes is on the host's image, and what it flushed survives a killed kvmpy."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest

from kvmpy.machine.virtio import VIRTIO_MMIO
from kvmpy.units import MIB

BOOT = (sys.executable, "-m", "kvmpy", "boot")
LONG_ENOUGH = 400  # Seconds in which a guest with a shell is done even where ring 0 is emulated.


def boot(kernel, report, *drives):
    words = [*BOOT, kernel, "-m", "128M", "--timeout", str(LONG_ENOUGH), "--report", str(report)]
    for drive in drives:
        words += ["--drive", drive]
    return words


@pytest.fixture
def shell(kernel, tmp_path):
    """Boots to a shell with these drives and types these commands; what it said, and its report."""

    def run(commands, *drives):
        report = tmp_path / "report.json"
        text = "\n".join([*commands, "reboot -f", ""]).encode()
        done = subprocess.run(
            boot(kernel, report, *drives), input=text, capture_output=True, timeout=2 * LONG_ENOUGH, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.replace(b"\r\n", b"\n"), json.loads(report.read_text())

    return run


def image(path, size=8 * MIB, seed=1):
    path.write_bytes(random.Random(seed).randbytes(size))
    return str(path)


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest().encode()


def test_disks_are_read_and_written(shell, tmp_path):
    system, data, shared = tmp_path / "system.img", tmp_path / "data.img", tmp_path / "shared.img"
    with open(system, "wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard", system], check=True)
    image(data, seed=2)
    image(shared, seed=3)
    before = data.read_bytes()

    said, report = shell(
        [
            "md5sum /dev/vdb /dev/vdc",
            "dd if=/dev/vdc of=/dev/vdb bs=64k count=16 seek=32 conv=fsync 2>/dev/null && echo copied",
            "dd if=/dev/zero of=/dev/vdc bs=512 count=1 2>/dev/null || echo refused",
            "echo serial $(cat /sys/block/vdb/serial) size $(cat /sys/block/vdb/size)",
            "mkdir /m; mount -t ext4 /dev/vda /m && dd if=/dev/vdb of=/m/file bs=64k count=16 2>/dev/null && umount /m",
            "echo unmounted $?",
        ],
        str(system),
        f"{data},serial=the-data,engine=threads",
        f"{shared},ro,cache=none",
    )
    assert md5(before) + b"  /dev/vdb" in said
    assert md5(shared.read_bytes()) + b"  /dev/vdc" in said
    assert b"\ncopied" in said
    assert b"\nrefused" in said
    assert b"\nserial the-data size 16384" in said
    assert b"\nunmounted 0" in said

    assert shared.read_bytes() == random.Random(3).randbytes(8 * MIB)
    assert data.read_bytes() == before[: 2 * MIB] + shared.read_bytes()[:MIB] + before[3 * MIB :]
    subprocess.run(["e2fsck", "-fn", system], check=True, capture_output=True)
    copy = subprocess.run(["debugfs", "-R", "cat /file", system], check=True, capture_output=True).stdout
    assert copy == before[:MIB]
    # Its registers were exits, its notifications were not.
    assert hex(VIRTIO_MMIO) in report["mmio"]
    assert hex(VIRTIO_MMIO + 0x50) not in report["mmio"]


def test_what_was_flushed_survives_sigkill(kernel, tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * MIB))
    # Each round writes a sector that names it, flushes, and only then says so.
    text = (
        "n=1; while [ $n -lt 1000 ]; do printf '%0512d' $n | dd of=/dev/vda bs=512 seek=$n conv=fsync,notrunc "
        "2>/dev/null && echo flushed $n.; n=$((n+1)); done\n"
    )
    words = boot(kernel, tmp_path / "report.json", str(path))
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(text.encode())
        process.stdin.flush()
        said = b""
        while b"\nflushed 5." not in said:
            piece = os.read(process.stdout.fileno(), 4096)
            assert piece, said
            said += piece
        process.kill()
        said += process.stdout.read()
        assert process.wait() == -9
    data = path.read_bytes()
    rounds = said.count(b"\nflushed ")
    assert rounds >= 5
    for number in range(1, rounds + 1):
        assert data[number * 512 : number * 512 + 512] == b"%0512d" % number


def test_a_disk_in_use_is_refused_with_a_sentence(kvmpy_boot, kernel, initrd, tmp_path):
    path = image(tmp_path / "disk.img", MIB)
    done = kvmpy_boot(kernel, "-i", initrd(b""), "--drive", path, "--drive", path)
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert b"is in use by another machine" in done.stderr
