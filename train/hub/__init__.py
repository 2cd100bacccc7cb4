"""What comes from a model hub, once per node, and where it is kept.

Offers: resolve, download, cache_directory.
May import: config, errors, rundir.
"""
