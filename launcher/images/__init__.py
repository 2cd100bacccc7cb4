"""Container images: build, pin and transfer them, and explain what an engine refuses.

Offers: builder.build_argv(); lock.read_lock(); transfer.save_archive(); engine.image_id(); refusals.diagnosis().
May import: errors, machine, plan.
"""
