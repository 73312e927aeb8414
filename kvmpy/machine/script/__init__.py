"""Scripts that look at a machine and take part in it: hooks on its exits, devices, traces, a debugger.

Nothing of this is imported before it is used: `Machine`'s methods `on_pio`, `trace`, `debugger` and so on are the
way in.
"""
