"""Runs as Slurm jobs: partitions, queries, states, and a login host.

Offers: SlurmBackend; the Target of an allocation.
May import: the same as backends.
"""
