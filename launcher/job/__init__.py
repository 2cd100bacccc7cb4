"""What the user asked for: a job file, flags and overrides become a Job.

Offers: load(file, overrides, flags) -> Job; JobSpec and its sections; parse_set; inputs(spec).
May import: errors.
"""
