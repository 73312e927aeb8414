"""What a machine boots and runs from: kernels, initramfs archives, kernel modules."""
