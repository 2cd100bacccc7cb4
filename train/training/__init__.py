"""The loop: strategy, optimizer, loss, checkpoints, evaluation, result.

Offers: build(...), Loop.run(progress), Progress.
May import: every room below.
"""
