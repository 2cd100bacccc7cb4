"""A RunPlan becomes the texts of a run directory, and the snapshot of the code.

Offers: render(plan) -> {path: text}; script(); snapshot_code().
May import: errors, assets, plan, rundir.
"""
