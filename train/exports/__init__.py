"""An adapter in another form: a directory, merged weights, an Ollama model.

Offers: EXPORTS, export.
May import: config, families, errors, data, model, answers.
"""
