"""The run directory, the interface of everything after submit: names, record, state, logs.

Offers: RunDir, RunRecord, RunState, LogLine, find_run, list_runs, derive_state, follow_logs.
May import: errors, node, machine.
"""
