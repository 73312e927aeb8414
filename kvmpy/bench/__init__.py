"""Benchmarks: each measures kvmpy against a peer in the same run, in alternating rounds (`rounds`).

`python -m kvmpy.bench NAME` runs one; `scripts/bench` does so from a checkout.
"""
