"""Convert ChatGLM and Baichuan checkpoints from their original layouts to those of transformers.

Offers: conversion.converted(path) -> Path, conversion.convert(source, target), alibi.load_alibi.
May import: families, hub.
"""
