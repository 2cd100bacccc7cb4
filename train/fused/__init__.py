"""Fused layers for a GPU: norms, attention, linear layers with LoRA, sharded weights under ZeRO-3, and answers.

Offers: fuse(model, ...), to_device, decoding.Decoder, and a torch version of every Triton kernel for CPUs.
May import: families, memory, dist.
"""
