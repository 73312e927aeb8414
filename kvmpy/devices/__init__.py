"""What the guest sees: devices, each pure and knowing neither its address nor its thread."""
