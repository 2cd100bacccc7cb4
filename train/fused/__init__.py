"""Own layers for a GPU: norms, attention, linear maps with LoRA, and shared weights under ZeRO-3.

Offers: fuse(model, ...), to_device, CPU twins of every Triton kernel.
May import: families, dist.
"""
