"""The devices of an old PC's ISA bus, and QEMU's two debugging ports."""
