"""What runs on hosts where nothing is installed: the agent of a node, and the far end of an SSH session.

Offers `agent` (copied to code/node/ of a run), `farend` (sent over the channel), and to the launcher `processes` and
`files`, which both of them use. May import the standard library only, of Python 3.8 or newer.
"""
