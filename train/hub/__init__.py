"""Fetch models and data sets from hubs, once per node, and say where caches lie.

Offers: hub.once, download.download, cachedir.cache_directory and locked.
May import: config, errors, rundir.
"""
