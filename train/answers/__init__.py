"""Answers of a trained model: load it, generate, stream and score.

Offers: trained.find_adapter, trained.load_adapted, session.run_session, generation, metrics.score.
May import: config, families, errors, rundir, dist, data, model.
"""
