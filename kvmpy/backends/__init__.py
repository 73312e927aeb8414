"""The host side of devices: where a guest's bytes come from and go to."""
