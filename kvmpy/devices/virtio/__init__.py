"""Paravirtual devices to virtio 1.2: queues, transports, and the devices behind them."""
