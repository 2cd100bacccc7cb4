"""Processes beside the agent of a node: one sends notices, and one per tracker feeds it (docs/trackers.md).

Offers `beside.start` to the agent, and to Slurm's batch script a command for an end that no agent saw (`__main__.py`).
A companion can neither delay nor end the ranks: it only reads files of the run directory, and adds events.
May import `node`'s own modules, `agent` and the standard library, Python 3.8.
"""
