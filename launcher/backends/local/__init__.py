"""Runs on this machine: one agent, started as a child.

Offers: LocalBackend; the Target of this machine.
May import: the same as backends.
"""
