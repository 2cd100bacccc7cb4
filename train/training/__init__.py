"""A training run: its steps, the loop, gradients and optimizer, checkpoints, evaluation, result.

Offers: start.check_config, steps, strategy.build, loop.Loop, checkpoint.Progress, evaluator.Evaluator.
May import: every room below.
"""
