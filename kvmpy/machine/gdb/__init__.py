"""A stub for gdb: `target remote` to a machine, over a unix socket or TCP on loopback.

`server.GdbServer` listens, `connection` speaks with one client, `packets` is the wire, `session` answers commands by
way of the machine's debugger, and `target` is the processor as gdb knows it.  All of it is the GDB manual's appendix
"GDB Remote Serial Protocol".  Nothing here is imported unless a machine has a stub.
"""
