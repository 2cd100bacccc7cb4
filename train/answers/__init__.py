"""Answers of a trained model: generate, stream and score them.

Offers: answer_batch, stream, load_adapted, METRICS.
May import: config, families, errors, rundir, data, model.
"""
