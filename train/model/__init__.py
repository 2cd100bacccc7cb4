"""The base model: found, loaded, and given its adapter.

Offers: base.local_directory, limits.check, choose.choose_engine, load.load_for_training, load.load_plain, adapt.adapt.
May import: config, families, compat, errors, rundir, dist, hub, original.
"""
