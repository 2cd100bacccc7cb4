"""The node supervisor: starts the ranks of one node, passes requests on, ends everything, proves that nothing is left.

    python code/node/agent --run-dir D --node-rank R [--secrets-stdin | --secrets-file F] [--detach]

It reads plan.json["launch"] and nothing else, uses the standard library only (Python 3.8 or newer) and is copied to
hosts where zlaunch is not installed. Three processes take part on a node:

    warden ── agent ── ranks (each in a session of its own) ── whatever they start

The warden does nothing but wait. Warden and agent are child subreapers, so every descendant comes back to one of
them: an agent killed with -9 leaves its tree to the warden, which ends it and writes the record; ranks die with their
agent in any case (PR_SET_PDEATHSIG). The ranks' environment carries ZLAUNCH_RUN_ID, by which `find_run_processes`
finds what survived even the loss of both.

On several nodes, node 0's agent is the hub: the `Coordinator` in it alone decides when an attempt starts, when it is
over and whether there is another one; the other agents report and obey over one authenticated TCP connection each.
A run on one node uses the same coordinator without a socket.

Exit status: 0 succeeded, 1 failed, 75 stopped with a checkpoint, 130 cancelled without one.
"""
