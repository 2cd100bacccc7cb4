"""The agent: supervises the ranks of one node, and with the agents of the other nodes the run (docs/design/agent.md).

Offers `python code/node/agent/__main__.py --run-dir DIR --node-rank N` (exit status: 0 succeeded, 1 failed, 75 stopped
with a checkpoint, 130 cancelled without one), and to the launcher `launch`, `causes`, `signals`, `resize` and
`in_container`. May import `node`'s own modules and the standard library, Python 3.8.
"""
