"""What commands do, without Click: prepare, submit, attach, cancel, sweep.

Offers: load_job, prepare, submit, launch, cancel, sweep.
May import: every room below; never commands.
"""
