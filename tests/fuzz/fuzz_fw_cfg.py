"""Fuzzes fw_cfg with what a guest can send it: `python tests/fuzz/fuzz_fw_cfg.py -runs=100000`."""

from __future__ import annotations

from kvmpy.testing.fuzz import fuzz, instrumented

with instrumented():
    from kvmpy.devices.fw_cfg import FW_CFG_PORTS, FwCfg, FwCfgState
    from kvmpy.memory import GuestMemory

MEMORY = GuestMemory(0x10000)


def one_input(data: bytes) -> None:
    """Whatever is in memory and whichever ports are touched, the device neither raises nor holds what it cannot save.

    The first 256 bytes are the guest's memory, the rest accesses: width and direction, port, and a value.
    """
    MEMORY.fill(0, 0x1000)
    MEMORY.write(0, data[:256])
    device = FwCfg(MEMORY)
    device.add_file("etc/fixed", b"fixed")
    device.add_file("etc/writable", bytes(16), on_written=len)
    for at in range(256, len(data) - 5, 6):
        width = 1 << (data[at] & 3) % 3
        offset = data[at + 1] % FW_CFG_PORTS
        value = memoryview(bytearray(data[at + 2 : at + 2 + width]))
        if data[at] & 4:
            device.write(offset, value)
        else:
            device.read(offset, value)
    state = FwCfgState.from_dict(device.save().to_dict())
    device.restore(state)
    assert device.files()["etc/fixed"] == b"fixed"
    assert len(device.files()["etc/writable"]) == 16


if __name__ == "__main__":
    fuzz(one_input)
