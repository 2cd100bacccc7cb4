"""What the user asked for: a job file, flags and overrides become a Job.

Offers: load.read_job(file, overrides, flags) -> Job; spec.JobSpec; load.parse_set; inputs.inputs(spec).
May import: errors, and train.config.
"""
