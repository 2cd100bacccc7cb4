"""Exports of a run's adapter: a directory, merged weights, an Ollama model.

Offers: kinds.export, kinds.EXPORTS.
May import: config, families, errors, data, model, answers.
"""
