"""Container images: choose, build, pin, transfer, and compare them on hosts.

Offers: choose.choose_container(); builder.build_argv(); lock.read_lock(); transfer.save_archive(); on_hosts.question().
May import: errors, assets, machine, job, plan.
"""
