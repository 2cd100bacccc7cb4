"""Pure: a JobSpec and a Target become a RunPlan, with the reason of each automatic choice.

Offers: resolve.plan(); types.Target and RunPlan; fastest.choose(); gpus.find(); container.ContainerChoice.
May import: errors, job, and the pure part of train.
"""
