"""The x86 platform: where things sit in guest memory, and the tables that tell the guest so."""
