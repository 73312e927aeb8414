"""PCI: configuration space, functions with their BARs, the root bus with its two ways in, the host bridge."""
