"""What commands do, without Click's parsing: check, prepare, submit, follow, cancel and resume runs and sweeps.

Offers: submit.{load_job,prepare,submit}, attach.{launch,attach}, cancel.{cancel_run,cancel_sweep}, sweep.
May import: every room but commands.
"""
