"""The run directory as the training program sees it: its files, and which checkpoints can be used.

Offers: run_files.RunDir, run_files.write_atomic, checkpoints.complete, checkpoints.damage.
May import: nothing of ours; the launcher reads checkpoints with the same code.
"""
