"""The run directory: its files, its record, and the state, logs and result read from them.

Offers: RunDir, RunRecord, RunState, LogBlock, find_run, list_runs, derive_state, follow_logs, claims.Claim, and
reading.read (a Picture).
May import: errors, node.
"""
