"""A run in the terminal: the live view while it runs, and the final summary.

Offers: live.watch, final.{print_outcome,print_failure,print_scores}.
May import: rundir.
"""
