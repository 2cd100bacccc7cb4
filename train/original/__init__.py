"""Convert ChatGLM and Baichuan checkpoints from their original layouts to those of transformers.

Offers: conversion.converted(path) -> Path, conversion.convert(source, target), alibi.register.
May import: families, hub.
"""
