"""A RunPlan becomes the texts of a run directory, and the sources become a snapshot beside them.

Offers: texts.render(plan) -> {path: text}; sbatch.script(); snapshot.snapshot_code().
May import: errors, node, machine, plan.
"""
