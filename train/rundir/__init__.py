"""The run directory as the training program sees it: its files, which checkpoints can be used, and signs of progress.

Also the user's cache, and the bytecode of libraries in it.

Offers: run_files.{RunDir,write_atomic}, checkpoints.{complete,undamaged,damage,recorded}, heartbeat.Heartbeat,
user_cache.cache_directory, bytecode.keep.
May import: nothing of ours; the launcher reads checkpoints with the same code.
"""
