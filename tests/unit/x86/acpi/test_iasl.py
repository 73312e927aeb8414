"""ACPICA's own compiler reads each table, and makes the same bytes of what it has read."""

from __future__ import annotations

import subprocess

import pytest

# Who compiled it, and the checksum over that: the compiler puts its own name here.
_CHECKSUM = slice(9, 10)
_CREATOR = slice(28, 36)


def iasl(*words):
    done = subprocess.run(["iasl", *words], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def without_compiler(table):
    data = bytearray(table)
    data[_CHECKSUM] = bytes(1)
    data[_CREATOR] = bytes(8)
    return bytes(data)


@pytest.fixture
def recompile(tmp_path):
    """A table's source as iasl tells it, and the bytes that it makes of that; complaints fail the test."""

    def run(name, table):
        (tmp_path / f"{name}.dat").write_bytes(table)
        status, said = iasl("-p", str(tmp_path / name), "-d", str(tmp_path / f"{name}.dat"))
        assert status == 0, said
        assert not {"warning", "error", "invalid", "unknown"} & set(said.lower().split()), said
        source = tmp_path / f"{name}.dsl"
        status, said = iasl("-we", "-oa", "-p", str(tmp_path / f"{name}-again"), str(source))
        assert status == 0, said
        assert "0 Errors, 0 Warnings, 0 Remarks" in said, said
        return source.read_text(), (tmp_path / f"{name}-again.aml").read_bytes()

    return run


def test_every_table_is_compiled_back_to_itself(any_platform, tables, recompile):
    for name, table in tables(any_platform).items():
        if name == "RSDP":  # iasl has no source for it
            continue
        _, again = recompile(name, table)
        assert again == table if name == "FACS" else without_compiler(again) == without_compiler(table), name


def test_the_dsdt_reads_as_meant(platform, tables, recompile):
    source, _ = recompile("DSDT", tables(platform("reduced"))["DSDT"])
    words = " ".join(source.split())
    assert 'Name (_HID, "ACPI0013" /* Generic Event Device */)' in words
    assert "Local0 = EVST" in words
    assert "If ((Local0 & One)) { Notify (PWRB, 0x80) // Status Change }" in words
    assert "If ((Local0 & 0x02)) { Notify (SLPB, 0x80) // Status Change }" in words
    assert "If ((Local0 & 0x04)) { Notify (VGEN, 0x80) // Status Change }" in words
    assert "Name (_S5, Package (0x04) // _S5_: S5 System State { 0x05, 0x05, Zero, Zero })" in words
    assert "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000011, }" in words


def test_the_root_bridge_reads_as_meant(platform, tables, recompile):
    source, _ = recompile("DSDT", tables(platform("everything"))["DSDT"])
    words = " ".join(source.split())
    assert 'ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766") /* PCI Host Bridge Device */' in words
    assert "CDW1 |= 0x04" in words
    assert 'EisaId ("PNP0A08") /* PCI Express Bus */' in words
    assert 'EisaId ("PNP0501") /* 16550A-compatible COM Serial Port */' in words
