"""What commands do, without Click's parsing: check, prepare, submit, follow, cancel and resume runs and sweeps.

Offers: job_file.load_job, submit.{prepare,submit}, attach.{launch,attach}, cancel.{cancel_run,cancel_sweep}, sweep.
May import: every room but commands.
"""
