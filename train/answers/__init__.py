"""Answers of a trained model: load it, generate, stream and score.

Offers: trained.find_adapter, trained.load_adapted, session.run_session, fused_answers, generation, metrics.score.
May import: config, errors, rundir, dist, data, model, fused.
"""
