"""This machine: processes, interrupts, GPUs, ports, model files and hub caches.

Offers: run, passthrough, like_ctrl_c, local_gpus, free_ports, model_config, run_module.
May import: errors, assets, node.
"""
