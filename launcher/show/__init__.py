"""A run in the terminal: the live view while it runs, and the final summary. In page/, a run as an HTML file.

Offers: live.watch, frame.{frame,report}, final.{print_outcome,print_failure,print_scores}, page.
May import: rundir; machine for the place of the templates and for signals.
"""
