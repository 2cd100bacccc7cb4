"""The run directory as the training program sees it: its files, which checkpoints can be used, and signs of progress.

Offers: run_files.{RunDir,write_atomic}, checkpoints.{complete,undamaged,damage,recorded}, heartbeat.Heartbeat.
May import: nothing of ours; the launcher reads checkpoints with the same code.
"""
