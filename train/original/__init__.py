"""Convert ChatGLM and Baichuan checkpoints from their original layouts to those of transformers.

And complete what transformers 5 writes for transformers 4 and other programs.

Offers: conversion.converted(path) -> Path, conversion.convert(source, target), alibi.register, portable.make_portable.
May import: families, hub.
"""
