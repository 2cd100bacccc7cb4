"""The base model: found, loaded, and given its adapter.

Offers: load(...) -> Loaded, adapt(...), choose_engine(...).
May import: config, families, compat, errors, rundir, dist, hub, original.
"""
