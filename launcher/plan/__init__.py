"""Pure: a JobSpec and a Target become a RunPlan, with the reason of each automatic choice.

Offers: plan(), Target, RunPlan, find_gpu(); batch arithmetic; the words of each container engine.
May import: errors, job, and the pure part of train.
"""
