"""Fused layers for a GPU: norms, attention, linear layers with LoRA, and sharded weights under ZeRO-3.

Offers: fuse(model, ...), to_device, and a torch version of every Triton kernel for CPUs.
May import: families, memory, dist.
"""
