"""Runs as Slurm jobs: partitions, queries, states, cancellation, and a login host.

Offers: SlurmBackend in jobs.py, and the Target of an allocation.
May import: the same as backends.
"""
