"""This machine: processes, interrupts, GPUs, ports, model files and hub caches.

Offers: process.run, process.passthrough; interrupts.like_ctrl_c; facts; hub_places; trainer.environment.
May import: errors, assets, node.
"""
