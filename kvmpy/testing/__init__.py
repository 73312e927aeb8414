"""What tests of and with kvmpy share: fakes, a small assembler (`kvmpy.testing.asm`) and ready guests."""
