"""Fuzzes the gdb stub with what a client can send: `python tests/fuzz/fuzz_gdb.py -runs=100000`; needs /dev/kvm."""

from __future__ import annotations

from kvmpy.testing.fuzz import fuzz, instrumented

with instrumented("kvmpy.machine.gdb"):
    from kvmpy.config.machine import MachineConfig
    from kvmpy.errors import ConfigError
    from kvmpy.machine.builder import build
    from kvmpy.machine.gdb.address import parse_address
    from kvmpy.machine.gdb.packets import MAX_PACKET, PacketReader, encode
    from kvmpy.machine.gdb.session import Session

MACHINE = build(MachineConfig(b"\xf4" * 4096, protocol="flat64", memory=1 << 21))
DEBUGGER = MACHINE.debugger()


def one_input(data: bytes) -> None:
    """Whatever comes over the wire, no command raises, and each answer fits into a packet; nothing is run.

    The input is a stream of packets, and, taken as text, an address to listen at.
    """
    session = Session(DEBUGGER)
    # Packets with a right checksum, since a fuzzer does not find them.
    stream = b"".join(encode(packet) for packet in data.split(b"\n")) + data
    for event in PacketReader().feed(stream):
        if isinstance(event, bytes):
            answer = session.handle(event)
            if isinstance(answer, bytes):
                assert len(encode(answer)) <= MAX_PACKET + 4
    for breakpoint in tuple(DEBUGGER.breakpoints):
        breakpoint.remove()
    try:
        parse_address(data.decode("latin-1"))
    except ConfigError:
        pass


if __name__ == "__main__":
    fuzz(one_input)
