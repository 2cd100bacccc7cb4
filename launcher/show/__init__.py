"""A run in the terminal: the live view and the final summary.

Offers: watch(run, state), print_outcome.
May import: rundir, backends.
"""
