"""Runs on this machine: one agent, started as a detached child.

Offers: LocalBackend in single_node.py, and the Target of this machine.
May import: the same as backends.
"""
