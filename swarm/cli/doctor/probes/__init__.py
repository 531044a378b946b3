"""Probes: what is so on this machine; the thin side of `swarm doctor`, which decides nothing.

A probe that cannot find out says so with None or an empty answer; it raises nothing but programming errors.
"""
