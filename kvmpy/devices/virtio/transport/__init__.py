"""How a guest reaches a virtio device: registers in memory, or a PCI function."""
