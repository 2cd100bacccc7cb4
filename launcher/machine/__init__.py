"""This machine: processes, interrupts, GPUs, ports, model files, hub caches, and the files that zlaunch came with.

Offers: process.run, process.passthrough; interrupts.like_ctrl_c; facts; hub_places; trainer.environment;
installation.path.
May import: errors, node.
"""
