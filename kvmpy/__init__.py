"""kvmpy: a virtual machine monitor in Python."""
